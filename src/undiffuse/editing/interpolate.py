"""Between two noises: along the arc, where noise is as likely as at its ends."""

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.errors import InputError

PARALLEL = 1e-4  # radians; below it the arc is its chord to rounding


def spherical(a: Sample, b: Sample, share: float | Float[Tensor, " batch"]) -> Sample:
    """The point at `share` of the arc from a to b, per sample (Shoemake 1985):

        sin((1 - share) angle) / sin(angle) a + sin(share angle) / sin(angle) b

    a, b: (B, ...), of which each sample is one vector, and `angle` is that between the two; share: per sample, or one
    for all; 0 gives a and 1 gives b, exactly. Where a and b have the same norm, so has the result. Where they are
    parallel, opposite or 0, no arc is singled out, and the point is that of the straight line.

    Raises: InputError for shapes that differ, and shares outside [0, 1].
    """
    if a.shape != b.shape:
        raise InputError(
            f"spherical interpolation needs two batches of one shape, not {list(a.shape)} and {list(b.shape)}"
        )
    wide = torch.float64 if a.device.type == "cpu" else a.dtype  # not every device has float64
    shape = (-1, *[1] * (a.ndim - 1))
    between = torch.as_tensor(share, dtype=wide, device=a.device).expand(len(a)).reshape(shape)
    if not bool(((between >= 0) & (between <= 1)).all()):
        raise InputError(f"shares lie in [0, 1], not in [{float(between.min()):g}, {float(between.max()):g}]")
    flat_a, flat_b = a.flatten(1).to(wide), b.flatten(1).to(wide)
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    angle = ((flat_a * flat_b).sum(1) / norms).clamp(-1, 1).arccos().reshape(shape)
    arc = (angle > PARALLEL) & (angle < torch.pi - PARALLEL)  # nan is neither
    sine = torch.where(arc, angle.sin(), 1)
    of_a = torch.where(arc, ((1 - between) * angle).sin() / sine, 1 - between)
    of_b = torch.where(arc, (between * angle).sin() / sine, between)
    return of_a.to(a.dtype) * a + of_b.to(a.dtype) * b
