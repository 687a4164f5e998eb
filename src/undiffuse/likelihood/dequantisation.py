"""From data on a grid of values to a density and back: noise that fills the bins, and its own density.

    P(v) = Int_bin p(x) dx >= exp E_q[log p(x) - log q(x | v)],        x in the bin of v

so a density p of noised data gives a bound of the probability of the data (Theis et al. 2016).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.errors import InputError, unknown
from undiffuse.noise import NoiseSource


class Dequantised(NamedTuple):
    """Samples x (B, ...) with their bins filled, and log q(x | v) of each, in nats (B,), float64 on the host."""

    x: Sample
    log_q: Float64[Tensor, " batch"]

    def bits_per_dim(self, log_prob: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
        """-(log p(x) - log q(x | v)) / (D ln 2): of 8-bit values and uniform noise -log p / (D ln 2) + log2(127.5)."""
        return (self.log_q - log_prob) / (math.prod(self.x.shape[1:]) * math.log(2))


Noise = tuple[Float64[Tensor, "batch ..."], Float64[Tensor, "batch ..."]]  # within (-half, half), and its log-density


def uniform(u: Float64[Tensor, "batch ..."], half: float, std: float) -> Noise:
    """Uniform in the bin: of log-density -log(2 half)."""
    return (2 * u - 1) * half, torch.full_like(u, -math.log(2 * half))


def truncated_normal(u: Float64[Tensor, "batch ..."], half: float, std: float) -> Noise:
    """N(0, std^2) cut off at the bin's edges (Zheng et al. 2023, section 4.1).

    With std the noise of the model's own t_min, x is what the model was trained on but for the cut.
    """
    edge = half / std
    share = math.erf(edge / math.sqrt(2))
    z = math.sqrt(2) * torch.special.erfinv((2 * u - 1) * share)
    log_q = -0.5 * z.square() - math.log(std * share) - 0.5 * math.log(2 * math.pi)
    return z.clamp(-edge, edge) * std, log_q


DEQUANTISATIONS: dict[str, Callable[[Float64[Tensor, "batch ..."], float, float], Noise]] = {
    "uniform": uniform,
    "truncated-normal": truncated_normal,
}


def dequantised(
    x0: Sample,
    seeds: Int64[Tensor, " batch"],
    name: str = "uniform",
    *,
    std: float,
    levels: int = 256,
) -> Dequantised:
    """x0 (B, ...) on a grid of `levels` values in [-1, 1], each moved within its own bin, by one draw per element.

        x = x0 + noise,        |noise| < 1 / (levels - 1)

    The bins are centred on the values: of 8-bit values v, whom models see as v / 127.5 - 1, this is
    (v + u - 1/2) / 127.5 - 1 with u in (0, 1). (The form without the 1/2 would move all data by half a bin.)
    name: in `DEQUANTISATIONS`; std: sigma / alpha at the model's t_min, which a normal's is.

    Raises: InputError for an unknown name, and for values that are none of the grid.
    """
    if name not in DEQUANTISATIONS:
        raise unknown("dequantisation", name, DEQUANTISATIONS)
    steps = (x0.double() + 1) * (levels - 1) / 2
    if not bool(((steps - steps.round()).abs() < 1e-3).all() and (x0.abs() < 1 + 1e-6).all()):
        raise InputError(f"dequantisation is of data on {levels} values from -1 to 1; these hold others")
    source = NoiseSource(seeds, x0.shape[1:], x0.device, torch.float64)
    noise, log_q = DEQUANTISATIONS[name](source.uniform("dequantise", 0, x0.shape[1:]), 1 / (levels - 1), std)
    return Dequantised((x0.double() + noise).to(x0.dtype), log_q.flatten(1).sum(1).cpu())
