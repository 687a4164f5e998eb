"""Embedded Runge-Kutta pairs over the angle, with a step size of each sample's own."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, Sampler, State
from undiffuse.samplers.multistep import check_choice
from undiffuse.schedule import Schedule, along_batch


class Pair(NamedTuple):
    """A tableau whose last stage is the solution itself, so that the next step begins with its slope."""

    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]  # the last row is the solution
    error: tuple[float, ...]  # the solution less the embedded one of an order lower


PAIRS = {
    # Bogacki & Shampine 1989
    "bosh3": Pair(3, (0.5, 0.75, 1), ((0.5,), (0, 0.75), (2 / 9, 1 / 3, 4 / 9)), (-5 / 72, 1 / 12, 1 / 9, -1 / 8)),
    # Dormand & Prince 1980
    "dopri5": Pair(
        5,
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
}
SAFETY, SHRINK_MOST, GROW_MOST = 0.9, 0.2, 5.0  # Hairer, Norsett & Wanner, Solving ODEs I, II.4


@dataclass(frozen=True)
class Adaptive(Sampler):
    """Between two levels of the grid, as many steps as the error asks for; each sample has its own.

    The error of a step in z = x / sqrt(alpha^2 + sigma^2) is held under rtol |z| + atol, both root-mean-square over the
    sample. Samples that are done are not evaluated again: a hard sample costs the easy ones nothing, and
    `State.evaluations` says what each one cost. The step into sigma = 0 first goes down to the denoiser's t_min.

    The size of the next step is the host's decision: this sampler waits for the device, once a step.

    Raises: InputError where `most` steps between two levels are not enough.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    pair: Literal["bosh3", "dopri5"] = "dopri5"
    most: int = 1000

    def __post_init__(self) -> None:
        check_choice("the pair of an adaptive sampler", self.pair, tuple(PAIRS))
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0) or self.most < 1:
            raise InputError(f"tolerances must be 0 or more, not both 0, and most >= 1, not {self!r}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return PAIRS[self.pair].order

    @property
    def stages(self) -> int:  # type: ignore[override]
        return len(PAIRS[self.pair].nodes)

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        return torch.zeros(len(times) - 1, 0, times.shape[1], dtype=torch.float64)

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        lands = s == 0
        end = torch.where(lands, torch.full_like(s, denoiser.t_min), s)
        x, evaluations = self._integrate(denoiser, x, t, torch.where(lands, torch.minimum(end, t), end))
        if bool(lands.any()):
            landing = denoiser(x, torch.where(lands, torch.minimum(end, t), end)).x0
            x = torch.where(along_batch(lands.double(), x) > 0, landing, x)
            evaluations = evaluations + lands
        return x, state.after(evaluations)

    def _integrate(self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample) -> tuple[Sample, Tensor]:
        schedule, pair, wide = denoiser.schedule, PAIRS[self.pair], x.dtype

        def angle(time: PerSample) -> PerSample:
            return torch.atan2(schedule.sigma(time), schedule.alpha(time))

        def scale(time: PerSample) -> PerSample:
            return torch.hypot(schedule.alpha(time), schedule.sigma(time))

        now, end, z = angle(t), angle(s), x / along_batch(scale(t), x)
        ends = torch.minimum(t, s), torch.maximum(t, s)
        evaluations = torch.zeros(len(x), dtype=torch.int64)
        h, slope = end - now, torch.zeros_like(z)
        fresh = torch.ones(len(x), dtype=torch.bool)  # whose slope is not known
        at = t.clone()

        def slopes(which: Tensor, z_there: Tensor, there: PerSample) -> Tensor:
            time = schedule.time(-2 * torch.log(torch.tan(there)))
            time = torch.where(there == now[which], at[which], torch.where(there == end[which], s[which], time))
            time = time.clamp(ends[0][which], ends[1][which])
            evaluations[which] += 1
            factor = along_batch(scale(time), z_there)
            return (denoiser.rows(which)(factor * z_there, time).v / factor).to(wide)

        for _ in range(self.most):
            which = (now != end).nonzero().flatten()
            if not len(which):
                return along_batch(scale(s), z) * z, evaluations
            begin = which[fresh[which]]
            if len(begin):
                slope[begin] = slopes(begin, z[begin], now[begin])
                fresh[begin] = False
            left = end[which] - now[which]
            last = h[which].abs() >= left.abs() * (1 - 1e-9)
            size = torch.where(last, left, h[which])
            wide_size, start = along_batch(size, z), z[which]
            k = [slope[which]]
            for node, row in zip(pair.nodes, pair.stages, strict=True):
                there = torch.where(last, end[which], now[which] + size) if node == 1 else now[which] + node * size
                moved = start + wide_size * sum(a * f for a, f in zip(row, k, strict=True) if a)
                k.append(slopes(which, moved, there))
            error = wide_size * sum(b * f for b, f in zip(pair.error, k, strict=True) if b)
            level = torch.maximum(start.flatten(1).square().mean(1), moved.flatten(1).square().mean(1)).sqrt()
            share = error.flatten(1).square().mean(1).sqrt() / (self.atol + self.rtol * level)
            share = share.to("cpu", torch.float64)  # the host decides
            accepted = ~(share > 1)
            done = which[accepted]
            z[done], slope[done] = moved[accepted], k[-1][accepted]
            now[done] = torch.where(last, end[which], now[which] + size)[accepted]
            at[done] = schedule.time(-2 * torch.log(torch.tan(now[done])))
            factor = (SAFETY * share.clamp(min=1e-10) ** (-1 / pair.order)).clamp(SHRINK_MOST, GROW_MOST)
            factor = torch.where(share.isfinite(), factor, SHRINK_MOST)
            h[which] = size * torch.where(accepted, factor, factor.clamp(max=1.0))
        raise InputError(
            f"{self!r}: {self.most} steps between two levels were not enough for {len(which)} of {len(x)} samples"
        )
