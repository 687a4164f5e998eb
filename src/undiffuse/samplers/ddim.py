"""Denoising diffusion implicit models (Song, Meng & Ermon 2021)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.samplers.base import Grid
from undiffuse.samplers.linear import LinearSampler
from undiffuse.samplers.multistep import check_eta
from undiffuse.schedule import Host, Schedule
from undiffuse.transition import transition


@dataclass(frozen=True)
class DDIM(LinearSampler):
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - eta^2 var) eps_hat + eta sqrt(var) z, var = beta-tilde (eq. 12 and 16).

    eta: 0 is deterministic, 1 is ancestral sampling with beta-tilde; above 1 is allowed as far as the root is real.
    """

    eta: float = 0.0
    brownian: bool = False

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def clock(self, schedule: Schedule, t: Host) -> Host:
        return self.eta**2 * schedule.log_snr(t)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t, s = times[:-1], times[1:]
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        # var / sigma_s^2, so that the root below is taken of a number in [0, 1]
        share = transition(schedule, t, s)[1] / sigma_t.square() if self.stochastic else torch.zeros_like(t)
        kept = 1 - self.eta**2 * share
        if bool(((kept < 0) & (sigma_s > 0)).any()):  # the step into 0 draws nothing
            raise InputError(
                f"eta = {self.eta} needs more noise than there is: at most {float(share.max()) ** -0.5:.4f} here"
            )
        of_noise = sigma_s * kept.sqrt()
        of_x0 = schedule.alpha(s) - of_noise * schedule.alpha(t) / sigma_t
        rows = [of_noise / sigma_t, of_x0]
        return torch.stack([*rows, self.eta * sigma_s * share.sqrt()] if self.stochastic else rows, 1)
