"""Predictor-corrector sampling: Langevin steps at each level around any single-step sampler (Song et al. 2021)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, Sampler, State
from undiffuse.samplers.ddpm import DDPM
from undiffuse.samplers.multistep import check_choice
from undiffuse.samplers.wrapped import Wrapped
from undiffuse.schedule import Schedule, along_batch


@dataclass(frozen=True)
class Langevin(Wrapped):
    """At each level, `corrections` times x <- x + e score + sqrt(2 e) z; then the predictor steps to the next level.

        e = 2 a (snr |z| / |score|)^2,   a = 1 - beta of the step for a schedule that shrinks x (VP), 1 for VE

    (alg. 4 and 5). norms: "expected" takes |z| / |score| = sigma, which holds in many dimensions; "measured" takes the
    norms of each sample, as the authors' code takes their means over a batch: heavy-tailed in few dimensions, where the
    score may vanish. Each correction is one evaluation.
    """

    sampler: Sampler = field(default_factory=DDPM)
    snr: float = 0.16
    corrections: int = 1
    norms: Literal["expected", "measured"] = "expected"
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.snr <= 10 or self.corrections < 1:
            raise InputError(
                f"Langevin needs snr in (0, 10] and corrections >= 1, not {self.snr} and {self.corrections}"
            )
        check_choice("the norms of Langevin", self.norms, ("expected", "measured"))

    @property
    def stages(self) -> int:  # type: ignore[override]
        return self.sampler.stages + self.corrections

    def evaluations(self, steps: int) -> int:
        return self.sampler.evaluations(steps) + steps * self.corrections

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t, s = times[:-1], times[1:]
        shrink = (schedule.alpha(t) / schedule.alpha(s)).square()
        size = 2 * shrink * self.snr**2 * (schedule.sigma(t).square() if self.norms == "expected" else 1)
        return torch.cat([size[:, None], self.sampler.coefficients(schedule, times)], 1)

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        assert noise is not None
        size = along_batch(state.now()[0], x)
        for i in range(self.corrections):
            score = denoiser(x, t).score
            z = noise.normal("correction", state.k * self.corrections + i)
            e = size
            if self.norms == "measured":
                e = size * (z.flatten(1).square().sum(1) / score.flatten(1).square().sum(1)).reshape(size.shape)
            x = x + e * score + (2 * e).sqrt() * z
        inner = state._replace(coefficients=state.coefficients[..., 1:])
        x, after = self.sampler.step(denoiser, x, t, s, inner, noise)
        return x, after._replace(coefficients=state.coefficients, evaluations=after.evaluations + self.corrections)
