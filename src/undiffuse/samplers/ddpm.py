"""Ancestral sampling (Ho et al. 2020)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import unknown
from undiffuse.samplers.base import Grid
from undiffuse.samplers.linear import LinearSampler
from undiffuse.schedule import Host, Schedule

VARIANCES = ("beta-tilde", "beta")


def transition(schedule: Schedule, t: Host, s: Host) -> tuple[Host, Host]:
    """(alpha_ts, var_ts) of q(x_t | x_s) = N(alpha_ts x_s, var_ts), s < t (docs/mathematics.md section 1)."""
    gap = schedule.half_log_snr(s) - schedule.half_log_snr(t)
    return schedule.alpha(t) / schedule.alpha(s), -schedule.sigma(t).square() * torch.expm1(-2 * gap)


@dataclass(frozen=True)
class DDPM(LinearSampler):
    """Draws from the posterior q(x_s | x_t, x0_hat) (eq. 6 and 7 of Ho et al. 2020, for any pair of levels).

    variance: "beta-tilde", the posterior's own, exact for data that is a point; or "beta", var_ts, exact for data of
    unit variance.
    """

    variance: Literal["beta-tilde", "beta"] = "beta-tilde"
    brownian: bool = False
    stochastic = True

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown("variance of DDPM", self.variance, VARIANCES)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t, s = times[:-1], times[1:]
        alpha_ts, var_ts = transition(schedule, t, s)
        shrink = (schedule.sigma(s) / schedule.sigma(t)).square()
        of_x0 = schedule.alpha(s) * var_ts / schedule.sigma(t).square()
        variance = var_ts * shrink if self.variance == "beta-tilde" else var_ts
        return torch.stack([alpha_ts * shrink, of_x0, variance.sqrt()], 1)
