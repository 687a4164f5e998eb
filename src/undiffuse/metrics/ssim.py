"""Structural similarity of reconstructions."""

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor
from torch.nn import functional

from undiffuse.errors import InputError
from undiffuse.metrics.measurement import Measurement, mean

SIZE, STANDARD_DEVIATION = 11, 1.5  # of the window, in pixels
EDGE = SIZE // 2
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
    """The structural similarity of each image to its reference, in [-1, 1], 1 where equal.

        (2 mu_x mu_y + C1) (2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (s_x^2 + s_y^2 + C2))

    under a Gaussian window of 11 x 11 pixels and standard deviation 1.5, C1 = (0.01 255)^2, C2 = (0.03 255)^2; the mean
    over channels and over all pixels of the image, mirrored at its edges, as torchmetrics has it. (skimage leaves a
    border of 5 pixels out of the mean.)

    Raises: InputError unless both are uint8 of one shape, at least 6 pixels a side.

    Reference: Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13.
    """
    if images.dtype != torch.uint8 or reference.dtype != torch.uint8 or images.shape != reference.shape:
        raise InputError(
            f"SSIM compares uint8 images of one shape, not {images.dtype} {tuple(images.shape)} with {reference.dtype} "
            f"{tuple(reference.shape)}"
        )
    if images.ndim != 4 or min(images.shape[2:]) <= EDGE:
        raise InputError(
            f"SSIM takes images (N, C, H, W) of {EDGE + 1} pixels a side or more, not {tuple(images.shape)}"
        )
    x, y = (
        functional.pad(side.double().flatten(0, 1)[:, None], 4 * [EDGE], mode="reflect") for side in (images, reference)
    )
    moments = [_windowed(values) for values in (x, y, x * x, y * y, x * y)]
    mean_x, mean_y, square_x, square_y, product = moments
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    similarity = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    similarity /= (mean_x.square() + mean_y.square() + C1) * (variances + C2)
    return similarity.reshape(len(images), -1).mean(1)


def measure_ssim(images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "n c h w"]) -> Measurement:
    """The mean over images, with its standard error. Raises: InputError as `ssim`."""
    return mean("ssim", ssim(images, reference), window=SIZE, standard_deviation=STANDARD_DEVIATION)


def _windowed(x: Float64[Tensor, "n 1 h w"]) -> Float64[Tensor, "n 1 a b"]:
    place = torch.arange(SIZE, dtype=torch.float64, device=x.device) - EDGE
    window = torch.exp(-place.square() / (2 * STANDARD_DEVIATION**2))
    window = window / window.sum()
    return functional.conv2d(functional.conv2d(x, window[None, None, :, None]), window[None, None, None, :])
