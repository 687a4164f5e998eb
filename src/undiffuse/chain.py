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
        length, t_min, t_max = denoiser.schedule.length, denoiser.t_min, denoiser.t_max
        if not length:
            return cls.apart(denoiser, level, count, (t_max - t_min) / count)
        first, last = steps_within(length, t_min, t_max)
        return cls.apart(denoiser, level, last - first + 1, 1 / length)

    @classmethod
    def apart(cls, denoiser: BaseDenoiser, level: Level, number: int, gap: float) -> "Steps":
        """The steps from a level's times t to s = t - gap, in a chain of `number`; one to below t_min decodes."""
        schedule, t, t_min = denoiser.schedule, level.t, denoiser.t_min
        decodes = t - gap < t_min * (1 - 1e-6)
        s = torch.where(decodes, t / 2, t - gap)  # where it decodes, of no account
        gain = schedule.log_snr(s).exp() - level.log_snr.exp()
        # the last beta-tilde is 0, so that of the step before stands in (Nichol & Dhariwal 2021, section 3.1)
        upper, lower = torch.where(decodes, t + gap, t), torch.where(decodes, t, s)
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


def whole_chain(denoiser: BaseDenoiser, count: int) -> tuple[PerSample, float]:
    """The times of every step of one chain, rising from that which decodes, and the gap between them.

    Of a table its own steps; else `count` times evenly from t_min to t_max. Raises: InputError for fewer than 2 steps.
    """
    length, t_min, t_max = denoiser.schedule.length, denoiser.t_min, denoiser.t_max
    if length:
        first, last = steps_within(length, t_min, t_max)
        times, gap = torch.arange(first, last + 1, dtype=torch.float64) / length, 1 / length
    else:
        times, gap = (
            torch.linspace(t_min, t_max, max(count, 0), dtype=torch.float64),
            (t_max - t_min) / max(count - 1, 1),
        )
    if len(times) < 2:
        raise InputError(f"the discrete bound needs 2 steps or more, not {len(times)}")
    return times, gap
