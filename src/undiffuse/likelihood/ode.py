"""The likelihood by the probability-flow ODE: a walk up to the prior that sums the divergence on its way."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Given, Sample, Wrapper
from undiffuse.errors import InputError
from undiffuse.guidance import Guidance
from undiffuse.likelihood.divergence import draw_probes, estimated_divergence, exact_divergence
from undiffuse.likelihood.settled import settled
from undiffuse.noise import NoiseSource
from undiffuse.prediction import v_of
from undiffuse.samplers import Adaptive, Sampler, walk
from undiffuse.schedule import Time, along_batch
from undiffuse.transition import gaussian_log_prob

EXACT_UP_TO = 64  # dimensions, in which the divergence is exact by default
TOLERANCE = 1e-4  # of the default solver, in the samples' own unit and in nats/dimension


@dataclass(frozen=True)
class LogProb:
    """log p(x_0) by its terms, per sample (B,), float64 on the host; all but the counts in nats.

    prior: the log-density of where the walk ends, under N(0, prior_std^2); change: what the way adds, the integral of
    the divergence and the volume of the scales; standard_error: of the estimate of the divergence, by the spread over
    the probes: 0 where it is exact, nan of a single probe; evaluations: calls of the denoiser; probes: how many, 0 for
    the exact divergence; dimensions: D; t_min: the time at which the density is the model's.
    """

    prior: Float64[Tensor, " batch"]
    change: Float64[Tensor, " batch"]
    standard_error: Float64[Tensor, " batch"]
    evaluations: Int64[Tensor, " batch"]
    probes: int
    dimensions: int
    t_min: float

    @property
    def nats(self) -> Float64[Tensor, " batch"]:
        """log p(x_0)."""
        return self.prior + self.change

    @property
    def nats_per_dim(self) -> Float64[Tensor, " batch"]:
        """log p(x_0) / D."""
        return self.nats / self.dimensions


class Augmented(Wrapper):
    """A denoiser of (z, a), where a counts the divergence along the way of z: flat samples (B, D + m).

        dz/dphi = v / s,        da_k/dphi = (divergence of dz/dphi over z, by probe k) / sqrt(D),        x = s z

    with s = sqrt(alpha^2 + sigma^2), phi = atan2(sigma, alpha). The counts move as the samples do, so any sampler walks
    them, and an adaptive one holds their error too, which over sqrt(D) weighs in its mean square as nats/dimension.

    shape: of one sample; probes: (B, m, ...), or None for the exact divergence, with m = 1.
    """

    def __init__(self, denoiser: BaseDenoiser, like: Sample, probes: Sample | None) -> None:
        super().__init__(denoiser)
        self.shape, self.network_dtype, self.probes = like.shape[1:], like.dtype, probes

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Augmented":
        chosen = cast(Augmented, super().rows(index))
        chosen.probes = None if self.probes is None else self.probes[index.to(self.probes.device)]
        return chosen

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        level, dimensions = self.level(t, len(x_t)), math.prod(self.shape)
        with torch.enable_grad():
            x = x_t[:, :dimensions].reshape(-1, *self.shape).to(self.network_dtype).detach().requires_grad_()
            v = self.denoiser(x, t).v
            if self.probes is None:
                divergence = exact_divergence(v, x)
            else:
                divergence = estimated_divergence(v, x, self.probes.unbind(1))
        scale = along_batch(torch.hypot(level.alpha, level.sigma), x_t)
        moved = torch.cat([v.detach().flatten(1).to(x_t), scale * divergence.to(x_t) / math.sqrt(dimensions)], 1)
        return Estimate(x_t, moved, level, v_of)

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        return {}


def check_followed(denoiser: BaseDenoiser, sampler: Sampler) -> None:
    """Raises: InputError where no gradient passes, or none can be taken, and for a sampler that draws noise."""
    for module in denoiser.modules():
        if isinstance(module, Guidance) and not module.differentiable:
            raise InputError(f"no gradient passes through {type(module).__name__}, so it has no likelihood")
    if torch.is_inference_mode_enabled():
        raise InputError("a likelihood takes gradients: it runs under torch.no_grad, not under torch.inference_mode")
    if sampler.stochastic:
        raise InputError(f"{sampler!r} draws noise: a likelihood is integrated by a deterministic sampler")


@torch.no_grad()
def levels_up(denoiser: BaseDenoiser, steps: int | None = None) -> Float64[Tensor, " points"]:
    """Times rising from t_min to t_max, between which the angle phi grows by one factor: by default about 2.

    The divergence goes with 1 / phi, so a step of a solver over phi must be short where phi is small, and an adaptive
    one that begins at a far level may not notice.

    Raises: InputError for fewer than 1 step.
    """
    if steps is not None and steps < 1:
        raise InputError(f"a likelihood needs 1 step or more, not {steps}")
    ends = torch.tensor([denoiser.t_min, denoiser.t_max], dtype=torch.float64)
    first, last = torch.atan2(denoiser.schedule.sigma(ends), denoiser.schedule.alpha(ends)).log().tolist()
    count = math.ceil((last - first) / math.log(2)) if steps is None else steps
    angles = torch.linspace(first, last, count + 1, dtype=torch.float64).exp()
    times = denoiser.schedule.time(-2 * torch.log(torch.tan(angles)))
    times[0], times[-1] = ends
    return times


@torch.no_grad()
def log_prob(
    denoiser: BaseDenoiser,
    x0: Sample,
    seeds: Int64[Tensor, " batch"] | Sequence[int] | None = None,
    condition: Mapping[str, object] | None = None,
    *,
    sampler: Sampler | None = None,
    times: Float64[Tensor, " points"] | None = None,
    exact: bool | None = None,
    probes: int = 1,
) -> LogProb:
    """log p(x_0) of samples x0 (B, ...), by the probability-flow ODE from t_min up to t_max (Song et al. 2021, eq. 39).

        log p(x_0) = log N(x_T; 0, prior_std^2) + D log(alpha_min s_max / s_min) + Int div_z (dz/dphi) dphi

    with z = x / s, s = sqrt(alpha^2 + sigma^2), phi = atan2(sigma, alpha), from x_{t_min} = alpha x_0 on. The density
    is the model's own at t_min, of x / alpha: data with noise of sigma / alpha. It is exact up to the solver, the
    estimate of the divergence, and the prior, whose mismatch is small where alpha^2 at t_max is.

    seeds: one per sample, of its probes; by default 0 to B - 1. sampler: any that draws no noise; by default `Adaptive`
    with tolerances of 1e-4 and steps of each sample's own. times: rising from t_min to t_max; by default `levels_up`.
    exact: whether the divergence is, by D gradients an evaluation; by default up to 64 dimensions. probes: of
    Hutchinson's estimate else, a gradient each; from 2 on its error is known.

    Networks run in eval mode and without autocast, whatever they are set to.

    Raises: InputError for fewer than 1 probe, times with other ends, guidance that no gradient passes; as `walk` does.
    """
    sampler = Adaptive(rtol=TOLERANCE, atol=TOLERANCE) if sampler is None else sampler
    check_followed(denoiser, sampler)
    if probes < 1:
        raise InputError(f"the divergence needs 1 probe or more, not {probes}; exact=True needs none")
    batch, dimensions, schedule = len(x0), math.prod(x0.shape[1:]), denoiser.schedule
    x0 = x0 if x0.dtype == torch.float64 else x0.float()
    source = NoiseSource(torch.arange(batch) if seeds is None else seeds, x0.shape[1:], x0.device, x0.dtype)
    if len(source) != batch:
        raise InputError(f"{len(source)} seeds were given for {batch} samples")
    times = levels_up(denoiser) if times is None else times
    if abs(float(times[0]) - denoiser.t_min) + abs(float(times[-1]) - denoiser.t_max) > 1e-6 * denoiser.t_min:
        raise InputError(
            f"a likelihood is integrated from t_min = {denoiser.t_min:.6g} to t_max = {denoiser.t_max:.6g}, not from "
            f"{float(times[0]):.6g} to {float(times[-1]):.6g}"
        )
    if exact is None:
        exact = dimensions <= EXACT_UP_TO
    drawn = None if exact else draw_probes(source, probes)
    ends = torch.tensor([denoiser.t_min, denoiser.t_max], dtype=torch.float64)
    alpha, scale = schedule.alpha(ends).tolist(), torch.hypot(schedule.alpha(ends), schedule.sigma(ends)).tolist()
    with settled(denoiser):
        given = Given(denoiser, denoiser.encode(condition or {}))
        start = torch.zeros(batch, dimensions + (1 if exact else probes), dtype=torch.float64, device=x0.device)
        start[:, :dimensions] = alpha[0] * x0.flatten(1)
        way = walk(Augmented(given, x0, drawn), sampler, start, times)
        end, evaluations = _walked(way, start)
    end = end.cpu()
    counts = end[:, dimensions:] * math.sqrt(dimensions) / scale[1]
    volume = dimensions * (math.log(alpha[0]) + math.log(scale[1]) - math.log(scale[0]))
    log_std = torch.tensor(math.log(denoiser.prior_std()), dtype=torch.float64)
    noise = end[:, :dimensions]
    prior = gaussian_log_prob(noise, torch.zeros_like(noise), log_std).sum(1)
    spread = torch.zeros_like(prior) if exact else torch.full_like(prior, math.nan)
    error = counts.std(1) / math.sqrt(probes) if counts.shape[1] > 1 else spread
    return LogProb(
        prior, counts.mean(1) + volume, error, evaluations, 0 if exact else probes, dimensions, denoiser.t_min
    )


def _walked(way: Iterator[Sample], x: Sample) -> tuple[Sample, Int64[Tensor, " batch"]]:
    """Where a walk ends, and the evaluations of each sample."""
    while True:
        try:
            x = next(way)
        except StopIteration as end:
            return x, end.value.evaluations
