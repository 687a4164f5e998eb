"""Variational bounds of -log p(x_0): of ancestral sampling in T steps, and in infinitely many; by noise levels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from undiffuse.chain import LEAST_LOG_SNR, Steps, bound_terms, whole_chain
from undiffuse.denoiser import BaseDenoiser, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.likelihood.settled import settled
from undiffuse.noise import NoiseSource
from undiffuse.prediction import conversion, x0_of
from undiffuse.schedule import along_batch
from undiffuse.transition import discretised_gaussian_log_prob, gaussian_log_prob

EVEN = 0.5  # the share of draws that are even over the steps of a chain, so that none counts more than twice
PerSample = Float64[Tensor, " batch"]


@dataclass(frozen=True)
class Bound:
    """An upper bound of -log p(x_0) in nats/dimension, by its terms, per sample, float64 on the host.

    prior: (B,), L_T, from the law at t_max to the prior; reconstruction: (B,), L_0, from t_min to the data;
    log_snr, by_level, squared_error: (B, draws), each sample's levels, from the noise to the data, the part of the
    bound that each stands for, and |x0_hat - x_0|^2 / D there.
    """

    prior: PerSample
    reconstruction: PerSample
    log_snr: Float64[Tensor, "batch draws"]
    by_level: Float64[Tensor, "batch draws"]
    squared_error: Float64[Tensor, "batch draws"]

    @property
    def diffusion(self) -> PerSample:
        """The terms between the levels, summed."""
        return self.by_level.sum(1)

    @property
    def total(self) -> PerSample:
        """The sum of the terms, in nats/dimension."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> PerSample:
        """The sum of the terms, in bits/dimension."""
        return self.total / math.log(2)


class _Noised:
    """Samples and their noise at any level, from their own streams."""

    def __init__(
        self,
        denoiser: BaseDenoiser,
        x0: Sample,
        seeds: Int64[Tensor, " batch"] | Sequence[int],
        condition: Mapping[str, object] | None,
        draws: int,
    ) -> None:
        if draws < 1:
            raise InputError(f"the bound needs 1 draw or more, not {draws}")
        self.source = NoiseSource(seeds, x0.shape[1:], x0.device, x0.dtype)
        if len(self.source) != len(x0):
            raise InputError(f"{len(self.source)} seeds were given for {len(x0)} samples")
        self.denoiser, self.x0, self.given = denoiser, x0, denoiser.encode(condition or {})

    @property
    def offset(self) -> PerSample:
        """One for each sample, so that its levels lie evenly."""
        return NoiseSource(self.source.seeds, (), "cpu", torch.float64).uniform("time")

    def estimate(self, t: PerSample, k: int) -> tuple[Estimate, Sample, PerSample]:
        """The estimate at times t by noise number k, what it should have given, and how that weighs in x_0 (c_out)."""
        schedule, x0, given = self.denoiser.schedule, self.x0, self.given
        noise = self.source.normal("noise", k)
        x_t = along_batch(schedule.alpha(t), x0) * x0 + along_batch(schedule.sigma(t), x0) * noise
        found: Estimate = self.denoiser(x_t, t, given)
        a, b = found.target(found.level)
        target = along_batch(a, x0) * x0 + along_batch(b, x0) * noise
        return found, target, conversion(found.level, (a, b), x0_of(found.level))[1]


def _squared_error(estimate: Estimate, target: Sample, c_out: PerSample) -> PerSample:
    """|x0_hat - x_0|^2 / D, by the error of what was predicted, which keeps its digits where noise is low."""
    return (estimate.output - target).double().square().flatten(1).mean(1).cpu() * c_out.square()


def _prior_term(denoiser: BaseDenoiser, x0: Sample) -> PerSample:
    """The divergence of q(x_T | x_0) from N(0, prior_std^2), in nats/dimension."""
    end = torch.tensor(denoiser.t_max, dtype=torch.float64)
    alpha, sigma = float(denoiser.schedule.alpha(end)), float(denoiser.schedule.sigma(end))
    variance = denoiser.prior_std() ** 2
    energy = 0.5 * ((alpha * x0.cpu().double()).square() + sigma**2) / variance
    return (energy - 0.5 - math.log(sigma) + 0.5 * math.log(variance)).flatten(1).mean(1)


@torch.no_grad()
def variational_bound(
    denoiser: BaseDenoiser,
    x0: Sample,
    seeds: Int64[Tensor, " batch"] | Sequence[int],
    condition: Mapping[str, object] | None = None,
    draws: int = 16,
    levels: int | None = 256,
) -> Bound:
    """The bound of each sample of x0 (B, ...), estimated by `draws` evaluations of the denoiser (VDM, 2021, eq. 11).

        diffusion = 1/2 Int snr |x0_hat - x_0|^2 d(log_snr)   over the denoiser's range, stratified in log_snr

    seeds: one per sample; levels: of the data's values in [-1, 1] (256 for 8-bit pictures), for a discretised Gaussian
    as the reconstruction, of the standard deviation sigma / alpha at t_min; None for its density.

    The terms are those of ancestral sampling in infinitely many steps; of the model's own prior N(0, prior_std^2).

    Raises: InputError for fewer than 1 draw.
    """
    schedule = denoiser.schedule
    with settled(denoiser):
        noised = _Noised(denoiser, x0, seeds, condition, draws)
        ends = schedule.log_snr(torch.tensor([denoiser.t_min, denoiser.t_max], dtype=torch.float64))
        most, least = float(ends[0]), max(float(ends[1]), LEAST_LOG_SNR)
        log_snrs, errors = [], []
        for k in reversed(range(draws)):
            t = schedule.time(most - (most - least) * (k + noised.offset) / draws).clamp(denoiser.t_min, denoiser.t_max)
            log_snrs.append(schedule.log_snr(t))
            errors.append(_squared_error(*noised.estimate(t, k)))
        first = torch.full((len(x0),), denoiser.t_min, dtype=torch.float64)
        x0_hat, data = noised.estimate(first, draws)[0].x0.cpu().double(), x0.cpu().double()
    log_std = torch.tensor(-most / 2, dtype=torch.float64)
    decoded = (
        gaussian_log_prob(data, x0_hat, log_std)
        if levels is None
        else discretised_gaussian_log_prob(data, x0_hat, log_std, levels)
    )
    log_snr, error = torch.stack(log_snrs, 1), torch.stack(errors, 1)
    by_level = 0.5 * (most - least) / draws * log_snr.exp() * error
    return Bound(_prior_term(denoiser, x0), -decoded.flatten(1).mean(1), log_snr, by_level, error)


@torch.no_grad()
def discrete_bound(
    denoiser: BaseDenoiser,
    x0: Sample,
    seeds: Int64[Tensor, " batch"] | Sequence[int],
    condition: Mapping[str, object] | None = None,
    steps: int = 1000,
    draws: int | None = None,
    levels: int | None = 256,
) -> Bound:
    """The bound of each sample of x0 (B, ...) by ancestral sampling in `steps` steps (Ho et al. 2020, eq. 5).

        L_T + sum_t KL(q(x_s | x_t, x_0) || p(x_s | x_t)) - log p(x_0 | x_{t_min})

    Steps of the model's learned variance, else of beta-tilde. A table has its own steps; else they are even in log_snr,
    from t_max to t_min, and the last one, to the data, has the variance sigma^2 of t_min (of a table that of the step
    before, or the learned one).

    draws: how many of the steps between levels are evaluated, stratified, more often where log_snr changes more, each
    standing for those around it; by default all. seeds, levels: as in `variational_bound`.

    Raises: InputError for fewer than 2 steps, or 1 draw, and for more draws than steps.
    """
    times = whole_chain(denoiser, steps)
    count = len(times) - 1
    chosen = count if draws is None else draws
    if chosen > count:
        raise InputError(f"a chain of {len(times)} steps has {count} between its levels: draws={draws} is more")
    with settled(denoiser):
        noised = _Noised(denoiser, x0, seeds, condition, chosen)

        # beta-tilde from t_max to t_min is sigma^2 of t_min
        before = times[1] if denoiser.schedule.length else times[-1]

        def term(step: Int64[Tensor, " batch"], k: int) -> tuple[PerSample, PerSample, PerSample]:
            """Of step number `step` of each sample: its log_snr, its part of the bound, and |x0_hat - x_0|^2 / D."""
            estimate, target, c_out = noised.estimate(times[step], k)
            chain = Steps.between(
                estimate.level, times[(step - 1).clamp(min=0)], before.expand(len(x0)), step == 0, len(times)
            )
            part = bound_terms(chain, estimate, x0, target, c_out, levels)
            return estimate.level.log_snr, part.cpu().double(), _squared_error(estimate, target, c_out)

        probability = torch.full((count,), 1 / count, dtype=torch.float64)
        if draws is not None:
            moved = -denoiser.schedule.log_snr(times).clamp(min=LEAST_LOG_SNR).diff()
            probability = EVEN / count + (1 - EVEN) * moved / moved.sum()
        edges = probability.cumsum(0)
        terms = []
        for k in reversed(range(chosen)):
            step = torch.bucketize((k + noised.offset) / chosen, edges[:-1]) + 1
            log_snr, part, error = term(step, k)
            terms.append((log_snr, part / (chosen * probability[step - 1]), error))
        last = term(torch.zeros(len(x0), dtype=torch.int64), chosen)[1]
    log_snr, by_level, error = (torch.stack(column, 1) for column in zip(*terms, strict=True))
    return Bound(_prior_term(denoiser, x0), last, log_snr, by_level, error)
