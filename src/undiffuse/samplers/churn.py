"""Stochastic churn around any single-step solver (Karras et al. 2022, alg. 2)."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, Sampler, State
from undiffuse.samplers.linear import LinearSampler
from undiffuse.samplers.single_step import Heun
from undiffuse.samplers.wrapped import Wrapped
from undiffuse.schedule import Schedule, along_batch


@dataclass(frozen=True)
class Churn(Wrapped):
    """Before each step, noise lifts x to a higher level, r' = r (1 + gamma) with r = sigma / alpha.

    amount: S_churn; gamma = min(amount / steps, sqrt(2) - 1) where low <= r <= high (S_tmin, S_tmax), else 0; x is not
    lifted above the level where the grid starts. noise_std: S_noise, which inflates the noise; 1 keeps the marginals.
    """

    sampler: Sampler = field(default_factory=lambda: Heun("ratio"))
    amount: float = 40.0
    low: float = 0.05
    high: float = 50.0
    noise_std: float = 1.0
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.amount < math.inf and 0 <= self.low < self.high and 0 < self.noise_std <= 10):
            raise InputError(
                f"churn needs a finite amount >= 0, 0 <= low < high and noise_std in (0, 10], not {self!r}"
            )
        if self.sampler.brownian or not isinstance(self.sampler, LinearSampler):
            raise InputError(f"churn goes around a single-step solver of fresh noise or none, not {self.sampler!r}")

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t, s = times[:-1], times[1:]
        log_snr = schedule.log_snr(t)
        ratio = torch.exp(-log_snr / 2)
        gamma = min(self.amount / len(t), math.sqrt(2) - 1)
        churned = (ratio >= self.low) & (ratio <= self.high) & (times[:1] > t) & (gamma > 0)
        lifted = torch.minimum(schedule.time(log_snr - 2 * math.log1p(gamma)), times[0])
        lifted = torch.where(churned, lifted, t)
        c_x = torch.where(churned, schedule.alpha(lifted) / schedule.alpha(t), 1)
        added = schedule.sigma(lifted).square() - (c_x * schedule.sigma(t)).square()
        c_z = torch.where(churned, self.noise_std * added.clamp(min=0).sqrt(), 0)
        return torch.cat([torch.stack([c_x, c_z, lifted], 1), self.apart(schedule, lifted, s)], 1)

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        assert noise is not None
        c_x, c_z, lifted = state.now()[:3]
        x = along_batch(c_x, x) * x + along_batch(c_z, x) * noise.normal("churn", state.k)
        inner = state._replace(coefficients=state.coefficients[..., 3:])
        x, after = self.sampler.step(denoiser, x, lifted, s, inner, noise)
        return x, after._replace(coefficients=state.coefficients)
