"""Peak signal-to-noise ratio of reconstructions."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.measurement import Measurement, mean

MOST_DB = 100.0


def psnr(images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """10 log10(255^2 / mean squared error) of each image against its reference, in decibels; infinite where equal.

    Raises: InputError unless both are uint8 of one shape.
    """
    if images.dtype != torch.uint8 or reference.dtype != torch.uint8 or images.shape != reference.shape:
        raise InputError(
            f"PSNR compares uint8 images of one shape, not {images.dtype} {tuple(images.shape)} with {reference.dtype} "
            f"{tuple(reference.shape)}"
        )
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error)


def mean_psnr(images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
    """The mean over images, its standard error, and how many: {"db", "standard_error", "n"}.

    Equal images, whose ratio is infinite, count as 100 dB.
    """
    values = psnr(images, reference).clamp(max=MOST_DB)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {"db": round(float(values.mean()), 3), "standard_error": round(error, 3), "n": len(values)}


def measure_psnr(images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "n c h w"]) -> Measurement:
    """The same as a measurement, in decibels. Raises: InputError as `psnr`."""
    return mean("psnr", psnr(images, reference).clamp(max=MOST_DB))
