"""A chain of denoising steps: the step down from each level, and how far a model's is from the true posterior."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.prediction import Level
from undiffuse.schedule import along_batch
from undiffuse.transition import discretised_gaussian_log_prob, gaussian_log_prob, posterior

LEAST_LOG_SNR = -20.0  # below it x_t says nothing: what is left out is under 1e-8 nats/dimension
PerSample = Float64[Tensor, " batch"]


def steps_within(length: int, t_min: float, t_max: float) -> tuple[int, int]:
    """The first and the last step of a table of so many whose times i / length lie in [t_min, t_max].

    Raises: InputError where none does.
    """
    first, last = math.ceil(t_min * length - 1e-6), math.floor(t_max * length + 1e-6)
    if not 1 <= first <= last:
        raise InputError(f"no step of a table of {length} lies between t_min={t_min} and t_max={t_max}")
    return first, last


class Steps(NamedTuple):
    """The step down from each level of a batch, for a chain."""

    number: int  # in the whole chain
    decodes: Bool[Tensor, " batch"]  # whether it is the last one, to the data
    log_least: PerSample  # log beta-tilde; of the last step that of the one before it
    log_ratio: PerSample  # log beta - log beta-tilde
    gain: PerSample  # snr_s - snr_t: half of it weighs the error of x_0

    @classmethod
    def of(cls, denoiser: BaseDenoiser, level: Level, count: int) -> "Steps":
        """The steps from a level's times t to s = t - gap: of a table, its own steps; else `count` between the ends."""
        length, t, t_min, t_max = denoiser.schedule.length, level.t, denoiser.t_min, denoiser.t_max
        gap = (t_max - t_min) / count
        if length:
            first, last = steps_within(length, t_min, t_max)
            count, gap = last - first + 1, 1 / length
        return cls.between(level, t - gap, t + gap, t - gap < t_min * (1 - 1e-6), count)

    @classmethod
    def between(
        cls, level: Level, below: PerSample, above: PerSample, decodes: Bool[Tensor, " batch"], number: int
    ) -> "Steps":
        """The steps from a level's times down to those below, or to the data: then with the variance of that above."""
        schedule, t = level.schedule, level.t
        s = torch.where(decodes, t / 2, below)  # where it decodes, of no account
        gain = schedule.log_snr(s).exp() - level.log_snr.exp()
        # the last beta-tilde is 0, so that of the step before stands in (Nichol & Dhariwal 2021, section 3.1)
        upper, lower = torch.where(decodes, above, t), torch.where(decodes, t, s)
        log_least = posterior(schedule, upper, lower).variance.log()
        beta = 2 * torch.log(level.sigma)
        log_ratio = torch.where(decodes, beta - log_least, 2 * torch.log(level.sigma / schedule.sigma(s)))
        return cls(number, decodes, log_least, log_ratio, gain)


def bound_terms(
    steps: Steps, estimate: Estimate, x0: Sample, target: Sample, c_out: PerSample, levels: int | None
) -> Float[Tensor, " batch"]:
    """The divergence of each sample's step from the true posterior; of the last step -log p(x_0 | x_t). Nats/dimension.

        KL = 1/2 [ r k + e^(-r k) - 1 + e^(-r k) (snr_s - snr_t) |x0_hat - x_0|^2 ],      k = log(beta / beta-tilde)

    with r the `variance_fraction`, 0 where none is learned. levels: of the data's values in [-1, 1] (256 for 8-bit
    pictures), for a discretised Gaussian; None for its density.
    """
    fraction = torch.zeros((), device=x0.device) if estimate.variance_fraction is None else estimate.variance_fraction
    excess = fraction * along_batch(steps.log_ratio, x0)
    error = (estimate.output - target).square() * along_batch(steps.gain * c_out.square(), x0)
    divergence = 0.5 * (excess + torch.expm1(-excess) + torch.exp(-excess) * error)
    if not bool(steps.decodes.any()):
        return divergence.flatten(1).mean(1)
    log_std = (along_batch(steps.log_least, x0) + excess) / 2
    if levels is None:
        decoded = gaussian_log_prob(x0, estimate.x0, log_std)
    else:
        decoded = discretised_gaussian_log_prob(x0, estimate.x0, log_std, levels)
    last = along_batch(steps.decodes.double(), x0) > 0
    return torch.where(last, -decoded, divergence).flatten(1).mean(1)


def whole_chain(denoiser: BaseDenoiser, count: int) -> PerSample:
    """The times of every step of one chain, rising from t_min, where the last one decodes, to t_max.

    Of a table its own steps; else `count` times evenly in log_snr, so that each step has about an equal part of the
    bound. Raises: InputError for fewer than 2 steps.
    """
    schedule, t_min, t_max = denoiser.schedule, denoiser.t_min, denoiser.t_max
    if schedule.length:
        first, last = steps_within(schedule.length, t_min, t_max)
        count = last - first + 1
    if count < 2:
        raise InputError(f"the discrete bound needs 2 steps or more, not {count}")
    if schedule.length:
        return torch.arange(first, last + 1, dtype=torch.float64) / schedule.length
    ends = torch.tensor([t_min, t_max], dtype=torch.float64)
    most, least = schedule.log_snr(ends).clamp(min=LEAST_LOG_SNR).tolist()
    times = schedule.time(torch.linspace(most, least, count, dtype=torch.float64))
    times[0], times[-1] = ends
    return times
