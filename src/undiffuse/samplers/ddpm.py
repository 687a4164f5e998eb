"""Ancestral sampling (Ho et al. 2020), with a fixed or a learned variance (Nichol & Dhariwal 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Estimate, Sample
from undiffuse.errors import InputError, unknown
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, State
from undiffuse.samplers.linear import LinearSampler
from undiffuse.schedule import Schedule, along_batch
from undiffuse.transition import posterior, transition

VARIANCES = ("beta-tilde", "beta", "learned")


@dataclass(frozen=True)
class DDPM(LinearSampler):
    """Draws from the posterior q(x_s | x_t, x0_hat) (eq. 6 and 7 of Ho et al. 2020, for any pair of levels).

    variance: "beta-tilde", the posterior's own, exact for data that is a point; "beta", var_ts, exact for data of unit
    variance; or "learned", between the two as the network says, beta-tilde (sigma_t / sigma_s)^(2 r), r by element.
    """

    variance: Literal["beta-tilde", "beta", "learned"] = "beta-tilde"
    brownian: bool = False
    stochastic = True

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown("variance of DDPM", self.variance, VARIANCES)

    def init(self, denoiser: BaseDenoiser, x: Sample, times: Grid) -> State:
        if self.variance == "learned" and not denoiser.learns_variance:
            raise InputError(
                "ddpm:variance=learned needs a network that learns its variance (network.learned_variance=true): use "
                "beta-tilde or beta"
            )
        return super().init(denoiser, x, times)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t, s = times[:-1], times[1:]
        step = posterior(schedule, t, s)
        variance = transition(schedule, t, s)[1] if self.variance == "beta" else step.variance
        return torch.stack([step.of_x, step.of_x0, variance.sqrt()], 1)

    def _draws(self, estimate: Estimate, levels: Sequence[PerSample], state: State, noise: NoiseSource) -> list[Sample]:
        z = super()._draws(estimate, levels, state, noise)
        if self.variance != "learned":
            return z
        assert estimate.variance_fraction is not None
        sigma_t, sigma_s = (estimate.level.schedule.sigma(level) for level in levels)
        # a step into 0 adds no noise
        log_ratio = torch.where(sigma_s > 0, sigma_t / sigma_s, 1).log()
        return [z[0] * torch.exp(estimate.variance_fraction * along_batch(log_ratio, z[0]))]
