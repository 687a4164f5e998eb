"""Resizing of pictures before a network of features: antialiased as in clean-fid, or as in the first FID code.

How pictures are made smaller moves a Frechet distance as much as a better model does, so it is part of what features
are called (Parmar, Zhang & Zhu 2022, On aliased resizing and surprising subtleties in GAN evaluation).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from undiffuse.errors import unknown

Resized = Float32[Tensor, "n c size size"]


def clean(images: UInt8[Tensor, "n c h w"], size: int) -> Resized:
    """Bicubic (a = -0.5), widened by the factor of reduction so that nothing aliases; channel by channel in float32.

    What clean-fid's mode "clean" does by Pillow on float images (mode "F"), within 0.01 grey levels, and in batches on
    any device. It is not rounded or clipped: bicubic may reach a little out of [0, 255], there as here.

    Reference: Parmar, Zhang & Zhu 2022, section 3; Keys 1981, Cubic convolution interpolation.
    """
    if images.shape[-2:] == (size, size):
        return images.float()
    return F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)


def legacy(images: UInt8[Tensor, "n c h w"], size: int) -> Resized:
    """Bilinear without antialiasing, output pixel i at input position i * in / out: TensorFlow 1's, of the FID papers.

    It neither widens its filter nor centres the pixels, so large pictures alias and all move by part of a pixel. For
    comparison with published values; clean-fid calls it "legacy_tensorflow".

    Reference: Heusel et al. 2017 (their code resizes in the Inception graph, `ResizeBilinear`).
    """
    rows, columns = (_between(side, size, images.device) for side in images.shape[-2:])
    return rows @ images.float() @ columns.T


RESIZES: dict[str, Callable[[UInt8[Tensor, "n c h w"], int], Resized]] = {"clean": clean, "legacy": legacy}


def resize(images: UInt8[Tensor, "n c h w"], size: int, mode: str = "clean") -> Resized:
    """Pictures as squares of `size` pixels, in grey levels 0 to 255, by one of `RESIZES`.

    Raises: InputError for an unknown mode.
    """
    if mode not in RESIZES:
        raise unknown("resizing", mode, RESIZES)
    return RESIZES[mode](images, size)


def middle_square(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c side side"]:
    """The largest square in the middle of each picture."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def _between(source: int, size: int, device: torch.device) -> Float32[Tensor, "size source"]:
    """The matrix whose row i mixes the two pixels around position i * source / size."""
    position = torch.arange(size, dtype=torch.float32) * torch.tensor(source / size, dtype=torch.float32)
    low = position.floor().long().clamp(max=source - 1)
    share = position - low
    matrix = torch.zeros(size, source)
    matrix.scatter_add_(1, low[:, None], 1 - share[:, None])
    matrix.scatter_add_(1, (low + 1).clamp(max=source - 1)[:, None], share[:, None])
    return matrix.to(device)
