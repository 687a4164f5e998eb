"""Samplers whose step is a fixed combination of x, what the network estimates, what it estimated before, and noise.

That is nearly every solver of the field; they differ in their coefficients, which depend on the grid alone.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, Sampler, State
from undiffuse.schedule import Host, Schedule, along_batch

Coefficient = float | Tensor  # of the whole batch, or (B, 1, ...) of each sample


def combine(coefficients: Sequence[Coefficient], vectors: Sequence[Sample | None]) -> Sample:
    """The sum of coefficient times vector. None stands for a vector that no sample uses."""
    total: Tensor | None = None
    for c, vector in zip(coefficients, vectors, strict=True):
        if vector is None or (isinstance(c, float) and c == 0):
            continue
        if isinstance(c, float):
            total = c * vector if total is None else torch.add(total, vector, alpha=c)
        else:
            total = c * vector if total is None else torch.addcmul(total, c, vector)
    if total is None:
        total = torch.zeros_like(next(vector for vector in vectors if vector is not None))
    return total


@dataclass(frozen=True)
class LinearSampler(Sampler):
    """A step of S stages, each one evaluation f_i of the unknown, at levels of which the first is t:

        x_s = c_x x + sum_i c_i f_i + sum_j d_j f(j steps ago) + c_z z

    unknown: what is combined, "x0", "noise" or "v" (attributes of `Estimate`); stages: S; memory: how many earlier f_0
    a step looks back on; corrects: whether the first evaluation also corrects x itself (predictor-corrector).

    A subclass gives `rows`: the coefficients (N, m, B) of every step, in the order in which they are used,

        if it corrects:          of x, the corrected x before, f_0, and the earlier ones     -> x, corrected
        for each stage i > 0:    of x, f_0 .. f_(i-1), the earlier ones, z_0 .. z_(i-1)      -> where stage i evaluates
        last:                    of x, f_0 .. f_(S-1), the earlier ones, z_0 .. z_(S-1)      -> x_s

    and `levels`: the times (N, S - 1, B) of the stages after the first. Where no sample uses the later f they are not
    evaluated. The step into sigma = 0 is first order for all of them, x_s = x0_hat, and its rows are of no account.
    """

    unknown = "x0"
    memory = 0
    corrects = False

    @abstractmethod
    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        """The coefficients of every step, those into sigma = 0 being of no account."""

    def levels(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps stages batch"]:
        """The times of the stages after the first."""
        return times[:-1, None].expand(-1, self.stages - 1, -1)

    def clock(self, schedule: Schedule, t: Host) -> Host:
        """The logarithm of the time of the Brownian motion that drives the sampler; here the SNR, as for eta = 1."""
        return schedule.log_snr(t)

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        lands = (times[1:] == 0)[:, None]
        levels = torch.where(lands, times[:-1, None], self.levels(schedule, times))
        return torch.cat([levels, torch.where(lands, 0, self.rows(schedule, times))], 1)

    def init(self, denoiser: BaseDenoiser, x: Sample, times: Grid) -> State:
        state = super().init(denoiser, x, times)
        levels = state.coefficients[..., : self.stages - 1]
        if bool((levels < denoiser.t_min * (1 - 1e-6)).any()):
            raise InputError(
                f"{self!r} would call the denoiser at t = {float(levels.min()):.6g}, "
                f"but it knows [{denoiser.t_min:.6g}, {denoiser.t_max:.6g}] only: end a step at 0, or above that"
            )
        return state

    @property
    def retained(self) -> int:
        return self.memory + self.corrects

    def _draws(self, estimate: Estimate, levels: Sequence[PerSample], state: State, noise: NoiseSource) -> list[Sample]:
        """One standard normal draw for each stage, on the way from its level to the next one's."""
        if not self.brownian:
            return [noise.normal("step", state.k * self.stages + i) for i in range(self.stages)]
        clock = [self.clock(estimate.level.schedule, level) for level in levels]
        return [noise.brownian(clock[i], clock[i + 1]) for i in range(self.stages)]

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        stages = self.stages
        estimate = denoiser(x, t)
        f: list[Sample | None] = [getattr(estimate, self.unknown)]
        lands = s == 0
        x0 = estimate.x0 if bool(lands.any()) else None
        if x0 is not None and bool(lands.all()):
            return x0, state.after(1)
        # a compiler would make each number a constant of its program
        common = None if torch.compiler.is_compiling() else state.common_step()
        now = state.now()
        levels = [t, *now[: stages - 1], s]
        # plain numbers where all samples stand at one level: no copy to the device, and no broadcast
        coefficients: Sequence[Coefficient] = (
            now[stages - 1 :, 0].tolist() if common is not None else along_batch(now[stages - 1 :], x).unbind()
        )
        *before, last = self._split(coefficients)
        earlier: tuple[Sample, ...] = state.history
        base = x
        if self.corrects:
            base = combine(before.pop(0), (x, earlier[0], f[0], *earlier[1:]))
            earlier = earlier[1:]
        z = self._draws(estimate, levels, state, noise) if noise is not None and self.stochastic else []
        # asked of the host, so nothing waits: single-stage steps among others are those of a start
        if stages > 1 and bool(now[len(now) - len(last) :][2 : 1 + stages].any()):
            for i, row in enumerate(before, start=1):
                f.append(getattr(denoiser(combine(row, (base, *f, *earlier, *z[:i])), levels[i]), self.unknown))
        evaluations = len(f)
        f += [None] * (stages - evaluations)
        result = combine(last, (base, *f, *earlier, *z))
        if x0 is not None:
            result = torch.where(along_batch(lands.double(), x) > 0, x0, result)
        kept = (base, f[0]) if self.corrects else (f[0],)
        return result, state.after(evaluations, *(*kept, *earlier)[: self.retained])

    def _split(self, coefficients: Sequence[Coefficient]) -> list[Sequence[Coefficient]]:
        """The rows of a step's coefficients."""
        rows, first = [], 0
        for width in self._widths:
            rows.append(coefficients[first : first + width])
            first += width
        return rows

    @property
    def _widths(self) -> list[int]:
        """How many coefficients each row of `rows` has."""
        draws = 1 if self.stochastic else 0
        correction = [3 + self.memory] if self.corrects else []
        return correction + [1 + i + self.memory + i * draws for i in range(1, self.stages + 1)]
