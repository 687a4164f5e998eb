"""Restart sampling around any sampler (Xu et al. 2023): go back up with fresh noise, and down again."""

import itertools
import math
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, Sampler, State
from undiffuse.samplers.single_step import Heun
from undiffuse.schedule import Schedule, along_batch
from undiffuse.transition import transition


@dataclass(frozen=True)
class Restart(Sampler):
    """Where the walk first reaches sigma / alpha <= low, `repeats` times: noise up to `high`, `steps` steps down again.

    sampler: takes all steps, those within a repeat on levels evenly spaced in (sigma / alpha)^(1/7). It starts anew
    after each repeat (a multistep sampler without history). Several intervals are several Restarts around one another.
    """

    sampler: Sampler = field(default_factory=lambda: Heun("ratio"))
    low: float = 0.05
    high: float = 0.3
    repeats: int = 2
    steps: int = 3
    stochastic = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise InputError(f"the sampler of Restart must be a sampler, not {self.sampler!r}")
        if not (0 < self.low < self.high < math.inf and 1 <= self.repeats <= 1000 and 1 <= self.steps <= 1000):
            raise InputError(f"restart needs 0 < low < high, repeats and steps in 1 to 1000, not {self!r}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return 1

    @property
    def stages(self) -> int:  # type: ignore[override]
        return self.sampler.stages

    @property
    def retained(self) -> int:
        return self.sampler.retained

    def evaluations(self, steps: int) -> int:
        """Where the interval lies within the grid."""
        return self.sampler.evaluations(steps) + self.repeats * (self.sampler.evaluations(self.steps + 1) - 1)

    def _restarts(self, schedule: Schedule, times: Grid) -> Tensor:
        """Whether a step (N, B) ends at the first level at or below `low`, above 0, that began below `high`'s t_max."""
        ratio = torch.exp(-schedule.log_snr(times) / 2)
        low = ratio <= self.low * (1 + 1e-6)  # a level at `low` is there, whatever the rounding; likewise at `high`
        return low[1:] & ~low[:-1] & (times[1:] > 0) & (ratio[0] >= self.high * (1 - 1e-6))

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        restarts = self._restarts(schedule, times)
        columns = []
        for i in range(times.shape[1]):
            column = times[:, i : i + 1]
            found = restarts[:, i].nonzero().flatten().tolist()
            cuts = [0, *(k + 1 for k in found), len(column) - 1]
            spans = [column[a : b + 1] for a, b in itertools.pairwise(cuts) if b > a]
            columns.append(torch.cat([self.sampler.coefficients(schedule, span) for span in spans]))
        return torch.cat([restarts.double()[:, None], torch.cat(columns, -1)], 1)

    @property
    def _first_branch(self) -> int:
        """Where its streams begin: after those of the restarts within, so that no draw is used twice."""
        number, inner = 1, cast(Sampler | None, self.sampler)
        while inner is not None:
            number += inner.repeats if isinstance(inner, Restart) else 0
            inner = getattr(inner, "sampler", None)
        return number

    def _again(self, schedule: Schedule, s: PerSample) -> Grid:
        """The grid (steps + 1, B) of one repeat, from `high` down to s."""
        rho = 7.0
        first, last = math.exp(math.log(self.high) / rho), torch.exp(-schedule.log_snr(s) / (2 * rho))
        u = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)[:, None]
        times = schedule.time(-2 * rho * torch.log(first + u * (last - first)))
        return torch.cat([times[:-1], s[None]])

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        assert noise is not None
        inner = state._replace(coefficients=state.coefficients[..., 1:])
        restarts = state.now()[0] > 0
        x, after = self.sampler.step(denoiser, x, t, s, inner, noise)
        after = after._replace(coefficients=state.coefficients)
        if not bool(restarts.any()):
            return x, after
        # samples that do not restart here are walked too, from their own level, and kept as they are
        times = self._again(denoiser.schedule, torch.where(restarts, s, s[restarts][0]))
        scaled, variance = (along_batch(v, x) for v in transition(denoiser.schedule, times[0], times[-1]))
        chosen, again = along_batch(restarts.double(), x) > 0, x
        evaluations = after.evaluations
        for repeat in range(self.repeats):
            fresh = noise.branch(self._first_branch + repeat)
            again = scaled * again + variance.sqrt() * fresh.normal("restart", state.k)
            walking = self.sampler.init(denoiser, again, times)
            for level, below in itertools.pairwise(times):
                again, walking = self.sampler.step(denoiser, again, level, below, walking, fresh)
            evaluations = evaluations + torch.where(restarts, walking.evaluations, 0)
        x = torch.where(chosen, again, x)
        return x, after._replace(evaluations=evaluations)
