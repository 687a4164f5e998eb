"""The trace of a Jacobian, from products of vectors with it."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource


def along(v: Sample, x: Sample, direction: Sample) -> Float64[Tensor, " batch"]:
    """e^T (dv/dx) e of each sample, for v(x) (B, ...) that remembers x and a direction e (B, ...).

    Raises: InputError where v does not depend on x by a path that gradients take.
    """
    if not v.requires_grad:
        raise InputError("no gradient passes through this denoiser, so its likelihood cannot be integrated")
    (product,) = torch.autograd.grad(v, x, direction, retain_graph=True)
    return (product.double() * direction).flatten(1).sum(1)


def exact_divergence(v: Sample, x: Sample) -> Float64[Tensor, "batch one"]:
    """sum_i dv_i / dx_i, by one product for each of the D dimensions."""
    flat = torch.zeros_like(x).flatten(1)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(flat.shape[1]):
        axis = flat.clone()
        axis[:, i] = 1
        total += along(v, x, axis.reshape(x.shape))
    return total[:, None]


def estimated_divergence(v: Sample, x: Sample, probes: Iterable[Sample]) -> Float64[Tensor, "batch probes"]:
    """e^T (dv/dx) e for each probe e, whose expectation is the divergence where E[e e^T] = 1 (Hutchinson 1989)."""
    return torch.stack([along(v, x, probe) for probe in probes], 1)


def draw_probes(source: NoiseSource, count: int) -> Float[Tensor, "batch probes ..."]:
    """Entries of +1 and -1 with equal probability (Rademacher), `count` probes from each sample's own stream.

    Of all probes with independent entries these have the least variance: twice the sum of the squares off the diagonal
    of the Jacobian's symmetric part.
    """
    return torch.stack([source.uniform("probe", k, source.shape) for k in range(count)], 1).sub(0.5).sign()
