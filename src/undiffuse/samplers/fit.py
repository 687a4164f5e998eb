"""A time grid fitted to a model and a sampler: where to put the levels, if there are only a few.

The model's own trajectories are the yardstick: a fine run along a few of them is the truth. From the best of the named
grids, the levels move until the sampler's error at the end is least, by Gauss-Newton steps whose derivatives are
differences. Other trajectories say how much was gained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.interpolate import PchipInterpolator
from scipy.optimize import least_squares
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.samplers import grid
from undiffuse.samplers.base import Sampler, sample
from undiffuse.samplers.multistep import Adams
from undiffuse.schedule import Schedule

KNOTS = 9  # levels that are moved freely; those of longer grids lie between them
REFERENCE_STEPS = 200
CANDIDATES = ("vp-quadratic", "log-snr", "karras", "angle", "quadratic")
FAR = 10.0
STARTS = 2  # of the candidates, the best ones from which levels are moved


@dataclass(frozen=True)
class Fit:
    """times (steps + 1,); error: root-mean-square distance to the truth at t = 0 on trajectories that were not fitted;
    before: the same on the best of the named grids tried, which is `candidate`; evaluations: calls of the denoiser.
    """

    times: Float64[Tensor, " points"]
    error: float
    before: float
    candidate: str
    evaluations: int


class _Levels:
    """Grids as points in R^m: the logarithms of the distances between levels in log angle, at most `KNOTS` of them."""

    def __init__(self, schedule: Schedule, steps: int, t_min: float, t_max: float) -> None:
        self.schedule, self.steps, self.t_min, self.t_max = schedule, steps, t_min, t_max
        self.first, self.last = self._log_angle(t_max), self._log_angle(t_min)
        self.knots = min(steps - 1, KNOTS)
        self.at = np.linspace(0, steps - 1, self.knots + 1)

    def _log_angle(self, t: float | Tensor) -> Tensor:
        return torch.atan2(self.schedule.sigma(t), self.schedule.alpha(t)).log()

    def point(self, times: Tensor) -> np.ndarray:
        """The point of a grid whose called levels are `times` (steps,)."""
        logs = self._log_angle(times).numpy()
        return np.log(np.maximum(-np.diff(np.interp(self.at, np.arange(self.steps), logs)), 1e-3))

    def times(self, point: np.ndarray) -> Tensor:
        """The grid (steps + 1,) at a point; falls from t_max, and what would lie below t_min is squeezed above it."""
        drops = np.concatenate([[0.0], np.cumsum(np.exp(np.clip(point, -12, 6)))])
        most = float(self.first - self.last)
        drops *= min(1.0, most / drops[-1])
        whole = PchipInterpolator(self.at, drops)(np.arange(self.steps)) if self.steps - 1 > self.knots else drops
        angle = torch.exp(self.first - torch.from_numpy(np.ascontiguousarray(whole)))
        times = self.schedule.time(-2 * torch.log(torch.tan(angle))).clamp(self.t_min, self.t_max)
        times[0] = self.t_max
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def truth(denoiser: BaseDenoiser, x: Sample, steps: int = REFERENCE_STEPS) -> Sample:
    """Where the probability flow takes x (B, ...) from t_max: a fine run of a method of high order."""
    times = grid.named("log-snr", denoiser.schedule, steps, denoiser.t_min, denoiser.t_max)
    return sample(denoiser, Adams(order=3, corrector=True), x, times)


def fit(
    denoiser: BaseDenoiser,
    sampler: Sampler,
    steps: int,
    x: Sample,
    held_out: Sample,
    progress: Callable[[float], None] = lambda share: None,
    rounds: int = 15,
) -> Fit:
    """The grid of `steps` levels on which `sampler` comes nearest to the truth from x (B, ...) at t_max.

    x: a few trajectories to fit; held_out: others to measure on; progress: told the share done; rounds: Gauss-Newton
    steps from each start. Should the fitted grid be worse than the best candidate on the held-out trajectories, that
    candidate is what comes back.

    Raises: InputError for a sampler that draws noise and for fewer than 2 steps.
    """
    if sampler.stochastic:
        raise InputError(f"a grid is fitted to a sampler without noise, not to {sampler!r}")
    if steps < 2:
        raise InputError(f"a grid of {steps} step has no level to move: give 2 or more")
    levels = _Levels(denoiser.schedule, steps, denoiser.t_min, denoiser.t_max)
    runs, most = 0, STARTS * rounds * (levels.knots + 1) + len(CANDIDATES) + 3

    def error(times: Tensor, start: Sample, end: Sample) -> Sample:
        nonlocal runs
        runs += 1
        progress(min(0.99, runs / most))
        return sample(denoiser, sampler, start, times) - end

    def rms(difference: Sample) -> float:
        return float(difference.double().square().mean().sqrt())

    def typical(difference: Sample) -> Tensor:
        """The root mean square of each trajectory, on the host."""
        return difference.double().flatten(1).square().mean(1).sqrt().cpu().clamp(min=1e-12)

    target, target_held_out = truth(denoiser, x), truth(denoiser, held_out)
    grids = {name: grid.named(name, denoiser.schedule, steps, denoiser.t_min, denoiser.t_max) for name in CANDIDATES}
    differences = {name: error(times, x, target) for name, times in grids.items()}
    per_trajectory = {name: typical(difference) for name, difference in differences.items()}
    if not all(bool(v.isfinite().all()) for v in per_trajectory.values()):
        raise InputError(f"{sampler!r} gives samples that are not finite in {steps} steps: nothing can be fitted to it")
    ranked = sorted(per_trajectory, key=lambda name: float(per_trajectory[name].log().mean()))
    # a trajectory near a parting of the ways has errors a hundred times the others', and would have all levels for it
    scale = per_trajectory[ranked[0]] * math.sqrt(x.numel())

    def residual(point: np.ndarray) -> np.ndarray:
        difference = error(levels.times(point), x, target)
        return (difference.double().flatten(1).cpu() / scale[:, None]).numpy().ravel()

    # differences are taken of coordinates far from 0, because their steps are relative: 1e-3, which float32 can see
    found = min(
        (
            least_squares(
                lambda moved: residual(moved - FAR),
                levels.point(grids[name][:-1]) + FAR,
                diff_step=1e-3 / FAR,
                max_nfev=rounds,
                ftol=1e-3,
                xtol=1e-3,
            )
            for name in ranked[:STARTS]
        ),
        key=lambda result: result.cost,
    )
    fitted, before = levels.times(found.x - FAR), grids[ranked[0]]
    after_error, before_error = (rms(error(times, held_out, target_held_out)) for times in (fitted, before))
    calls = runs * sampler.evaluations(steps) + 2 * REFERENCE_STEPS
    progress(1.0)
    if not after_error <= before_error:
        return Fit(before, before_error, before_error, ranked[0], calls)
    return Fit(fitted, after_error, before_error, ranked[0], calls)
