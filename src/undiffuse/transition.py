"""From one noise level to another: the forward kernel, its posterior, and how far a model's step is from it.

    q(x_t | x_s) = N(alpha_ts x_s, var_ts),        q(x_s | x_t, x_0) = N(of_x x_t + of_x0 x_0, beta-tilde),        s < t

A model's step is N(of_x x_t + of_x0 x0_hat, var). Its variance lies between beta-tilde and beta = var_ts:

    log var = log beta-tilde + r log(beta / beta-tilde),        beta / beta-tilde = (sigma_t / sigma_s)^2

with r constant, or learned for each element (Nichol & Dhariwal 2021, eq. 15).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.schedule import Host, Schedule

FAR = 100.0  # standard deviations, beyond which nothing is left of a Gaussian


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(of_x x_t + of_x0 x_0, variance), per level, float64 on the host."""

    of_x: Host
    of_x0: Host
    variance: Host


def transition(schedule: Schedule, t: Host, s: Host) -> tuple[Host, Host]:
    """(alpha_ts, var_ts) of q(x_t | x_s) = N(alpha_ts x_s, var_ts), s < t (docs/mathematics.md section 1)."""
    gap = schedule.half_log_snr(s) - schedule.half_log_snr(t)
    return schedule.alpha(t) / schedule.alpha(s), -schedule.sigma(t).square() * torch.expm1(-2 * gap)


def posterior(schedule: Schedule, t: Host, s: Host) -> Posterior:
    """The posterior at s < t; of variance beta-tilde = var_ts sigma_s^2 / sigma_t^2."""
    alpha_ts, var_ts = transition(schedule, t, s)
    sigma_t = schedule.sigma(t)
    shrink = (schedule.sigma(s) / sigma_t).square()
    return Posterior(alpha_ts * shrink, schedule.alpha(s) * var_ts / sigma_t.square(), var_ts * shrink)


def discretised_gaussian_log_prob(
    x: Float[Tensor, "batch ..."], mean: Float[Tensor, "batch ..."], log_std: Float[Tensor, "..."], levels: int = 256
) -> Float[Tensor, "batch ..."]:
    """log of the probability that N(mean, std^2) falls into the bin of x, in nats, for each element.

    x: values in [-1, 1] on an even grid of `levels` (8-bit pictures: 256); the bins at both ends are open, so that the
    probabilities of all values add up to 1 (Ho et al. 2020, eq. 13).
    """
    half = 1 / (levels - 1)
    inverse = torch.exp(-log_std)
    low, high = (x - half - mean) * inverse, (x + half - mean) * inverse
    # on the side where log_ndtr keeps its digits
    flipped = low + high > 0
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    first, last = x < -1 + half, x > 1 - half
    open_low, open_high = torch.where(flipped, last, first), torch.where(flipped, first, last)
    high = torch.where(open_high, FAR, high)
    low = torch.where(open_low, high.clamp(max=0) - FAR, low)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    log_prob: Tensor = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-30)))
    return log_prob


def gaussian_log_prob(
    x: Float[Tensor, "batch ..."], mean: Float[Tensor, "batch ..."], log_std: Float[Tensor, "..."]
) -> Float[Tensor, "batch ..."]:
    """log of the density of N(mean, std^2) at x, in nats, for each element."""
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
