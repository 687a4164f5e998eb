"""Ancestral steps around any single-step solver: below the level asked for, then up to it with noise."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, PerSample, Sampler, State
from undiffuse.samplers.linear import LinearSampler
from undiffuse.samplers.single_step import DPMSolverPlusPlusSingle
from undiffuse.samplers.wrapped import Wrapped
from undiffuse.schedule import Host, Schedule, along_batch
from undiffuse.transition import transition


@dataclass(frozen=True)
class Ancestral(Wrapped):
    """The solver steps to the level r_down with r_down^2 = r_s^2 - r_up^2, r = sigma / alpha; noise of r_up follows.

        r_up = eta sqrt(r_s^2 (r_t^2 - r_s^2) / r_t^2), at most r_s

    the ancestral step of k-diffusion. Around Euler over the ratio it is DDIM with the same eta (eta = 1: DDPM).
    """

    sampler: Sampler = field(default_factory=DPMSolverPlusPlusSingle)
    eta: float = 1.0
    brownian: bool = False
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eta <= 10:
            raise InputError(f"eta of ancestral steps must be in (0, 10], not {self.eta}; for 0 use the solver itself")
        if self.sampler.stochastic or not isinstance(self.sampler, LinearSampler):
            raise InputError(f"ancestral steps go around a single-step solver without noise, not {self.sampler!r}")

    def init(self, denoiser: BaseDenoiser, x: Sample, times: Grid) -> State:
        state = super().init(denoiser, x, times)
        levels = state.coefficients[..., 3 : 2 + self.sampler.stages]
        if bool((levels < denoiser.t_min * (1 - 1e-6)).any()):
            raise InputError(
                f"{self!r} would call the denoiser at t = {float(levels.min()):.6g}, below {denoiser.t_min:.6g}: take "
                "a grid that stops above t_min, such as vp-quadratic, or a solver such as dpm++-single"
            )
        return state

    def _below(self, schedule: Schedule, times: Grid) -> Host:
        t, s = times[:-1], times[1:]
        log_snr = schedule.log_snr(s)
        # r_down^2 / r_s^2 = 1 - eta^2 (1 - e^(-2h)), written so that it does not cancel at eta = 1
        kept = 1 - self.eta**2 + self.eta**2 * torch.exp(schedule.log_snr(t) - log_snr)
        below = schedule.time(log_snr - torch.log(kept.clamp(min=0)))
        return torch.where(s == 0, s, torch.minimum(below, s))

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        below, s = self._below(schedule, times), times[1:]
        scaled, variance = transition(schedule, s, below)
        lands = s == 0
        rise = [torch.where(lands, 1, scaled), torch.where(lands, 0, variance.sqrt()), below]
        return torch.cat([torch.stack(rise, 1), self.apart(schedule, times[:-1], below)], 1)

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        assert noise is not None
        c_x, c_z, below = state.now()[:3]
        inner = state._replace(coefficients=state.coefficients[..., 3:])
        x, after = self.sampler.step(denoiser, x, t, below, inner, None)
        if self.brownian:
            z = noise.brownian(denoiser.schedule.log_snr(t), denoiser.schedule.log_snr(s))
        else:
            z = noise.normal("step", state.k)
        return along_batch(c_x, x) * x + along_batch(c_z, x) * z, after._replace(coefficients=state.coefficients)
