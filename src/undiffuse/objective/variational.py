"""The discrete variational bound, for a variance that is fixed or learned."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from undiffuse.denoiser import Denoiser, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.objective.base import BaseObjective
from undiffuse.objective.times import TableTime, TimeLaw, steps_within
from undiffuse.prediction import Level
from undiffuse.schedule import along_batch
from undiffuse.transition import discretised_gaussian_log_prob, gaussian_log_prob, posterior

PerSample = Float64[Tensor, " batch"]


class Steps(NamedTuple):
    """The step down from each level of a batch, for a chain."""

    number: int  # in the whole chain
    decodes: Bool[Tensor, " batch"]  # whether it is the last one, to the data
    log_least: PerSample  # log beta-tilde; of the last step that of the one before it
    log_ratio: PerSample  # log beta - log beta-tilde
    gain: PerSample  # snr_s - snr_t: half of it weighs the error of x_0

    @classmethod
    def of(cls, denoiser: Denoiser, level: Level, count: int) -> "Steps":
        """The steps from a level's times t to s = t - gap: of a table, its own steps; else `count` between the ends."""
        schedule, t, t_min, t_max = denoiser.schedule, level.t, denoiser.t_min, denoiser.t_max
        gap = (t_max - t_min) / count
        if schedule.length:
            first, last = steps_within(schedule.length, t_min, t_max)
            count, gap = last - first + 1, 1 / schedule.length
        decodes = t - gap < t_min * (1 - 1e-6)
        s = torch.where(decodes, t / 2, t - gap)  # where it decodes, of no account
        gain = schedule.log_snr(s).exp() - level.log_snr.exp()
        # the last beta-tilde is 0, so that of the step before stands in (Nichol & Dhariwal 2021, section 3.1)
        upper, lower = torch.where(decodes, t + gap, t), torch.where(decodes, t, s)
        log_least = posterior(schedule, upper, lower).variance.log()
        beta = 2 * torch.log(level.sigma)
        log_ratio = torch.where(decodes, beta - log_least, 2 * torch.log(level.sigma / schedule.sigma(s)))
        return cls(count, decodes, log_least, log_ratio, gain)


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


def check_steps(denoiser: Denoiser, times: TimeLaw) -> None:
    """Raises: InputError where the steps of a table are not what is drawn from."""
    if denoiser.schedule.length and not isinstance(times, TableTime):
        raise InputError(
            f"the discrete bound on a table is over its own steps: take the time law table, not {times!r:.80}, or a "
            "schedule in continuous time"
        )


class VariationalBound(BaseObjective):
    """The discrete variational bound of `steps` steps, one of its terms per sample, in nats/dimension.

    With a network that learns its variance this is L_vlb of Nichol & Dhariwal (2021); of others the variance is
    beta-tilde (Ho et al. 2020, eq. 5). The term of the prior, which has nothing to learn, is left out. A table's steps
    are its own, drawn from with the time law "table". levels: as in `Objective`.
    """

    integrates = True

    def __init__(
        self,
        times: str | TimeLaw = "uniform",
        *,
        drop: float = 0.1,
        drop_each: Mapping[str, float] = MappingProxyType({}),
        steps: int = 1000,
        levels: int | None = 256,
    ) -> None:
        super().__init__(times, drop=drop, drop_each=drop_each)
        if steps < 2:
            raise InputError(f"the bound needs 2 steps or more, not {steps}")
        self.steps, self.levels = steps, levels

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if isinstance(denoiser.schedule, nn.Module):
            raise InputError("a learned schedule is trained with the bound of continuous time: objective weight=bound")
        check_steps(denoiser, self.times)

    def loss(self, denoiser: Denoiser, estimate: Estimate, x0: Sample, target: Sample) -> Float[Tensor, " batch"]:
        steps = Steps.of(denoiser, estimate.level, self.steps)
        c_out = denoiser.prediction.c_out(estimate.level)
        return steps.number * bound_terms(steps, estimate, x0, target, c_out, self.levels)
