"""Time laws: how the times of training are distributed."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from undiffuse.chain import steps_within
from undiffuse.errors import InputError
from undiffuse.schedule import Schedule

PerSample = Float64[Tensor, " batch"]


class TimeLaw(ABC):
    """How training times are distributed: a map from uniform draws to times.

    unbiased: whether the mean loss, after `correction`, is the mean over uniform times. Other laws are a part of the
    objective, as much as the weight is.
    """

    unbiased: ClassVar[bool] = False

    @abstractmethod
    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        """Times in [t_min, t_max] from uniform draws u in (0, 1), one per sample of the global batch."""

    def correction(self, t: PerSample, t_min: float, t_max: float) -> PerSample | None:
        """The density of uniform times over this law's, where the loss is to be multiplied by it; None for 1."""
        return None

    def observe(self, t: PerSample, loss: Float[Tensor, " batch"], t_min: float, t_max: float) -> None:  # noqa: B027
        """Be told the losses of a training step; most laws do not care."""


@dataclass(frozen=True)
class UniformTime(TimeLaw):
    """Uniform on [t_min, t_max]."""

    unbiased = True

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        return t_min + u * (t_max - t_min)


@dataclass(frozen=True)
class StratifiedTime(TimeLaw):
    """Uniform, one time in each of B equal strata by position in the batch: less variance (VDM, 2021)."""

    unbiased = True

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        position = torch.arange(len(u), dtype=torch.float64)
        return t_min + (position + u) / len(u) * (t_max - t_min)


def _check_normal(mean: float, std: float) -> None:
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise InputError(f"a normal law of times needs a finite mean and a finite std above 0, not {mean} and {std}")


@dataclass(frozen=True)
class LogNormalTime(TimeLaw):
    """log(sigma / alpha) normal, clamped to the range (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_normal(self.mean, self.std)

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(u))).clamp(t_min, t_max)


@dataclass(frozen=True)
class LogitNormalTime(TimeLaw):
    """t = sigmoid of a normal, clamped to the range (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal(self.mean, self.std)

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        normal: PerSample = torch.special.ndtri(u)
        return (self.mean + self.std * normal).sigmoid().clamp(t_min, t_max)


@dataclass(frozen=True)
class TableTime(TimeLaw):
    """Uniform over the steps of a table that lie in the range, for networks that are told an integer."""

    unbiased = True

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        if schedule.length is None:
            raise InputError(f"the time law 'table' needs a schedule that is a table, not {schedule!r:.80}")
        first, last = steps_within(schedule.length, t_min, t_max)
        return (first - 1 + (u * (last - first + 1)).ceil()) / schedule.length


class ImportanceTime(nn.Module, TimeLaw):
    """Times drawn in proportion to the root mean square of the loss there, which is divided out again.

    Nichol & Dhariwal (2021, eq. 18): the mean loss stays what it is under uniform times, and its variance falls. The
    range is cut into bins whose mean squares are averaged over some 100 steps; until each bin was seen, times are
    uniform. Draws are stratified by position in the batch.

    bins: how many; floor: the share of uniform draws. Losses come to the host once every `REFRESH` steps.
    """

    REFRESH: ClassVar[int] = 20
    KEPT: ClassVar[float] = 0.99  # of the averages, from step to step
    unbiased = True

    mass: Tensor
    total: Tensor
    density: Tensor
    seen: Tensor

    def __init__(self, bins: int = 64, floor: float = 0.05) -> None:
        super().__init__()
        if bins < 1 or not 0 < floor <= 1:
            raise InputError(f"importance sampling needs 1 bin or more and a floor in (0, 1], not {bins} and {floor}")
        self.bins, self.floor = bins, floor
        for name in ("mass", "total"):  # weights and weighted squares of the losses seen in each bin
            self.register_buffer(name, torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("density", torch.ones(bins, dtype=torch.float64))  # beside that of uniform times
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ImportanceTime":
        return self  # times live on the host

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        u = (torch.arange(len(u), dtype=torch.float64) + u) / len(u)
        share = self.density / self.bins
        upper = share.cumsum(0) / share.sum()
        index = torch.searchsorted(upper, u).clamp(max=self.bins - 1)
        within = (u - (upper - share)[index]) / share[index]
        return t_min + ((index + within.clamp(0, 1)) / self.bins) * (t_max - t_min)

    def _index(self, t: PerSample, t_min: float, t_max: float) -> Int64[Tensor, " batch"]:
        return ((t - t_min) / (t_max - t_min) * self.bins).long().clamp(0, self.bins - 1)

    def correction(self, t: PerSample, t_min: float, t_max: float) -> PerSample:
        density: Tensor = self.density[self._index(t, t_min, t_max)]
        corrected: PerSample = 1 / density
        return corrected

    def observe(self, t: PerSample, loss: Float[Tensor, " batch"], t_min: float, t_max: float) -> None:
        self._pending.append((self._index(t, t_min, t_max), loss.detach().square()))
        self.seen += 1
        if int(self.seen) % self.REFRESH == 0:
            self._take_in()
            if bool((self.mass > 0).all()):
                root = (self.total / self.mass).sqrt()
                self.density = (1 - self.floor) * root / root.mean().clamp(min=1e-300) + self.floor

    def _take_in(self) -> None:
        """Average in what was observed, step by step, so that it does not matter when the losses come to the host."""
        if not self._pending:
            return
        squares = (
            torch.cat([square for _, square in self._pending])
            .cpu()
            .double()
            .split([len(index) for index, _ in self._pending])
        )
        for (index, _), square in zip(self._pending, squares, strict=True):
            self.mass = self.KEPT * self.mass + torch.bincount(index, minlength=self.bins)
            self.total = self.KEPT * self.total + torch.bincount(index, square, minlength=self.bins)
        self._pending.clear()

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        self._take_in()
        super()._save_to_state_dict(destination, prefix, keep_vars)


TIME_LAWS: dict[str, type[TimeLaw]] = {
    "uniform": UniformTime,
    "stratified": StratifiedTime,
    "log-normal": LogNormalTime,
    "logit-normal": LogitNormalTime,
    "table": TableTime,
    "importance": ImportanceTime,
}
