"""Time grids: tensors (steps + 1,) that fall from t_max to 0. Data for a sampler, not its business.

The first `steps` points are where the network is called; the last of them is t_min (or near it), and then comes 0.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor

from undiffuse.errors import InputError, unknown
from undiffuse.schedule import Schedule, Time, VariancePreserving, host

Points = Float64[Tensor, " points"]
RHO = 7.0  # Karras et al. 2022, eq. 5
ANGLE_ROOT = 3.0
LAST_RATIO = 4.0
BETA = 0.6  # Lee et al. 2024, "Beta sampling is all you need"
NOISIEST_LOG_SNR = -14.0  # where alpha(t_max) = 0, grids over the log-SNR are spaced from here


def _spaced(of_time: Callable[[Time], Tensor], to_time: Callable[[Tensor], Tensor]) -> Callable[..., Points]:
    """The grid that is uniform in some function of time."""

    def grid(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
        first, last = of_time(host(t_max)), of_time(host(t_min))
        points = to_time(first + (last - first) * torch.linspace(0, 1, steps, dtype=torch.float64))
        points[0] = t_max  # not off by the rounding of an inverse, nor by NOISIEST_LOG_SNR
        return torch.cat([points[:1], points[1:].clamp(t_min, t_max)])

    return grid


def _in_log_snr(
    of_log_snr: Callable[[Tensor], Tensor], to_log_snr: Callable[[Tensor], Tensor]
) -> Callable[..., Points]:
    """The grid that is uniform in some function of the log-SNR."""

    def grid(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
        def of_time(t: Time) -> Tensor:
            return of_log_snr(schedule.log_snr(t).clamp(min=NOISIEST_LOG_SNR))

        return _spaced(of_time, lambda value: schedule.time(to_log_snr(value)))(schedule, steps, t_min, t_max)

    return grid


def _in_angle(of_angle: Callable[[Tensor], Tensor], to_angle: Callable[[Tensor], Tensor]) -> Callable[..., Points]:
    """The grid that is uniform in some function of atan2(sigma, alpha), the arc of (alpha, sigma) in VP."""

    def grid(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
        def of_time(t: Time) -> Tensor:
            return of_angle(torch.atan2(schedule.sigma(t), schedule.alpha(t)))

        def to_time(value: Tensor) -> Tensor:
            return schedule.time(-2 * torch.log(torch.tan(to_angle(value))))

        return _spaced(of_time, to_time)(schedule, steps, t_min, t_max)

    return grid


uniform = _spaced(host, host)
quadratic = _spaced(lambda t: host(t).sqrt(), torch.square)
beta = _spaced(
    lambda t: torch.from_numpy(np.asarray(stats.beta.cdf(host(t).numpy(), BETA, BETA))),
    lambda share: torch.from_numpy(np.asarray(stats.beta.ppf(share.numpy(), BETA, BETA))),
)
log_snr = _in_log_snr(lambda level: level, lambda level: level)
arc_length = _in_angle(lambda angle: angle, lambda angle: angle)
angle = _in_angle(lambda angle: angle ** (1 / ANGLE_ROOT), lambda root: root**ANGLE_ROOT)
karras = _in_log_snr(lambda level: torch.exp(-level / (2 * RHO)), lambda root: -2 * RHO * root.log())


def vp_quadratic(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """Even in the square root of the time at which the VP SDE (0.1 to 20) has the same log-SNR; the default.

    On the VP SDE itself this is the quadratic grid of Lu et al. (2022); through the log-SNR it is the same for every
    schedule. It stops at sigma / alpha = LAST_RATIO / steps^2, because a few steps do better not to go down to t_min.
    benchmarks/sampler_race.py chose it, and LAST_RATIO.
    """
    first = schedule.log_snr(t_max).clamp(min=NOISIEST_LOG_SNR)
    finest = schedule.log_snr(t_min)
    last = torch.minimum(finest, host(-2 * math.log(LAST_RATIO / steps**2)))
    last = torch.where(last > first + 2, last, finest)  # where the range is narrow, all of it
    reference = VariancePreserving()
    ends = reference.time(torch.stack([first, last])).sqrt()
    times = (ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, steps, dtype=torch.float64)).square()
    points = schedule.time(reference.log_snr(times)).clamp(t_min, t_max)
    points[0] = t_max
    return points


def _table_length(schedule: Schedule, steps: int) -> int:
    if schedule.length is None:
        raise InputError(f"the grids leading, linspace and trailing are for tables, not {schedule!r:.80}; use uniform")
    if steps > schedule.length:
        raise InputError(f"{steps} steps were asked of a table of {schedule.length}")
    return schedule.length


def leading(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """The network's integers 0, r, 2r, ... with r = T // steps (DDIM): does not start at t_max."""
    length = _table_length(schedule, steps)
    return (torch.arange(steps, dtype=torch.float64).flip(0) * (length // steps) + 1) / length


def leading_from_one(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """The network's integers 1, r + 1, 2r + 1, ... with r = T // steps (Stable Diffusion, its steps_offset)."""
    return leading(schedule, steps, t_min, t_max) + 1 / _table_length(schedule, steps)


def linspace(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """The network's integers evenly from T - 1 to 0, rounded."""
    length = _table_length(schedule, steps)
    return (torch.linspace(length - 1, 0, steps, dtype=torch.float64).round() + 1) / length


def linspace_of_one_more(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """The first `steps` of steps + 1 integers evenly from T - 1 to 0, rounded (the multistep solvers of diffusers)."""
    length = _table_length(schedule, steps)
    if steps == length:
        raise InputError(f"the grid linspace+1 takes {length - 1} steps of a table of {length}, at most: use linspace")
    return (torch.linspace(length - 1, 0, steps + 1, dtype=torch.float64).round()[:-1] + 1) / length


def trailing(schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """Steps of T / steps back from T, rounded (Lin et al. 2024, table 2)."""
    length = _table_length(schedule, steps)
    return (length - torch.arange(steps, dtype=torch.float64) * (length / steps)).round() / length


Rule = Callable[[Schedule, int, float, float], Points]
TABLE_GRIDS: dict[str, Rule] = {
    "leading": leading,
    "leading+1": leading_from_one,
    "linspace": linspace,
    "linspace+1": linspace_of_one_more,
    "trailing": trailing,
}
GRIDS: dict[str, Rule] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log-snr": log_snr,
    "exponential": log_snr,  # the same by its other name: even in log(sigma / alpha)
    "karras": karras,
    "beta": beta,
    "arc-length": arc_length,
    "angle": angle,
    "vp-quadratic": vp_quadratic,
    **TABLE_GRIDS,
}


def named(name: str, schedule: Schedule, steps: int, t_min: float, t_max: float) -> Points:
    """The grid called `name` in `GRIDS`, of shape (steps + 1,), falling from t_max (or near it) to 0.

    Raises: InputError for an unknown name, fewer than one step, or more steps than the table has.
    """
    if name not in GRIDS:
        raise unknown("time grid", name, GRIDS)
    if steps < 1:
        raise InputError(f"a grid needs at least 1 step, not {steps}")
    points = GRIDS[name](schedule, steps, t_min, t_max)
    if float(points[0]) > t_max * (1 + 1e-6) or float(points[-1]) < t_min * (1 - 1e-6):
        raise InputError(
            f"the grid {name} calls the network at t = {float(points[0]):.6g} to {float(points[-1]):.6g}, outside "
            f"[{t_min:.6g}, {t_max:.6g}]: use uniform, quadratic, log-snr or karras"
        )
    return torch.cat([points, torch.zeros(1, dtype=torch.float64)])
