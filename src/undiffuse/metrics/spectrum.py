"""Radial power spectra: how much of pictures lies at which spatial frequency."""

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from undiffuse.errors import InputError

BATCH = 256  # pictures transformed at once


def radial_power(images: UInt8[Tensor, "n c h w"]) -> tuple[Float64[Tensor, " r"], Float64[Tensor, " r"]]:
    """The mean power of pictures at each whole number of cycles across their shorter side.

        P(r) = mean of |F(u, v)|^2 / (H W)^2   over pictures, channels, and (u, v) with |(u, v)| within 1/2 of r

    with F the discrete Fourier transform of pictures in [0, 1], and |(u, v)| in cycles across the shorter side. Summed
    over all (u, v) but (0, 0) the powers are the variance within pictures (Parseval). Those of photographs fall about
    as 1 / r^2 (Field 1987); samples that are blurred lack power at large r, and those with noise left have too much.

    Args:
        images: uint8 (N, C, H, W), N >= 1, of 2 pixels a side or more.

    Returns: the frequencies r = 1, 2, ... up to half the shorter side, and P at each.

    Raises: InputError for other types and shapes.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images) or min(images.shape[-2:]) < 2:
        raise InputError(
            f"a spectrum is of uint8 pictures (N, C, H, W) of 2 pixels a side or more, not {images.dtype} "
            f"{tuple(images.shape)}"
        )
    height, width = images.shape[-2:]
    shorter = min(height, width)
    cycles = torch.hypot(
        torch.fft.fftfreq(height, dtype=torch.float64)[:, None] * shorter,
        torch.fft.fftfreq(width, dtype=torch.float64)[None] * shorter,
    )
    power = torch.zeros(height, width, dtype=torch.float64)
    for batch in images.split(BATCH):
        power += torch.fft.fft2(batch.cpu().double() / 255).abs().square().sum((0, 1))
    power /= len(images) * images.shape[1] * (height * width) ** 2
    ring = cycles.round().long().flatten()
    total, count = (
        torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, values)
        for values in (power.flatten(), torch.ones_like(power).flatten())
    )
    radii = torch.arange(1, shorter // 2 + 1)
    return radii.double(), total[radii] / count[radii]
