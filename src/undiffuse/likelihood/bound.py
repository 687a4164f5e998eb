"""How likely data are under a model: the variational bound in continuous time."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.schedule import along_batch
from undiffuse.transition import discretised_gaussian_log_prob, gaussian_log_prob

LEAST_LOG_SNR = -20.0  # below it x_t says nothing: what is left out is under 1e-8 nats/dimension


class Bound(NamedTuple):
    """An upper bound of -log p(x_0) in nats/dimension, by its terms, per sample (B,), float64 on the host.

    prior: from the law at t_max to the prior; diffusion: between the levels; reconstruction: from t_min to the data.
    """

    prior: Float64[Tensor, " batch"]
    diffusion: Float64[Tensor, " batch"]
    reconstruction: Float64[Tensor, " batch"]

    @property
    def total(self) -> Float64[Tensor, " batch"]:
        """The sum of the terms, in nats/dimension."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Float64[Tensor, " batch"]:
        """The sum of the terms, in bits/dimension."""
        return self.total / math.log(2)


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
    if draws < 1:
        raise InputError(f"the bound needs 1 draw or more, not {draws}")
    schedule, batch = denoiser.schedule, len(x0)
    source = NoiseSource(seeds, x0.shape[1:], x0.device, x0.dtype)
    if len(source) != batch:
        raise InputError(f"{len(source)} seeds were given for {batch} samples")
    ends = schedule.log_snr(torch.tensor([denoiser.t_min, denoiser.t_max], dtype=torch.float64))
    most, least = float(ends[0]), max(float(ends[1]), LEAST_LOG_SNR)
    given = denoiser.encode(condition or {})

    def noised(t: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The estimate of x_0 at times t, and its error, squared and averaged over the elements."""
        x_t = along_batch(schedule.alpha(t), x0) * x0 + along_batch(schedule.sigma(t), x0) * source.normal("noise", k)
        x0_hat = denoiser(x_t, t, given).x0
        return x0_hat, (x0_hat - x0).square().flatten(1).mean(1)

    # one offset for each sample, so that its levels lie evenly
    offset = NoiseSource(source.seeds, (), "cpu", torch.float64).uniform("time")
    diffusion = torch.zeros(batch, dtype=x0.dtype, device=x0.device)
    for k in range(draws):
        t = schedule.time(most - (most - least) * (k + offset) / draws).clamp(denoiser.t_min, denoiser.t_max)
        error = noised(t, k)[1]
        diffusion += along_batch(0.5 * (most - least) / draws * schedule.log_snr(t).exp(), error) * error

    first = torch.full((batch,), denoiser.t_min, dtype=torch.float64)
    # what is left is done in float64, on the host
    x0_hat, data = noised(first, draws)[0].cpu().double(), x0.cpu().double()
    log_std = torch.tensor(-most / 2, dtype=torch.float64)
    decoded = (
        gaussian_log_prob(data, x0_hat, log_std)
        if levels is None
        else discretised_gaussian_log_prob(data, x0_hat, log_std, levels)
    )
    alpha, sigma = float(schedule.alpha(denoiser.t_max)), float(schedule.sigma(denoiser.t_max))
    variance = denoiser.prior_std() ** 2
    prior = 0.5 * ((alpha * data).square() + sigma**2) / variance - 0.5 - math.log(sigma) + 0.5 * math.log(variance)
    return Bound(prior.flatten(1).mean(1), diffusion.cpu().double(), -decoded.flatten(1).mean(1))
