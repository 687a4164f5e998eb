"""The first matrix of a time embedding: what it multiplies is cosines, then sines, of w_k c_noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.networks.unet import sinusoidal

Matrix = Float[Tensor, "out width"]


def flipped(weight: Matrix) -> Matrix:
    """The matrix for cosines before sines, from one that was made for sines before cosines."""
    sines, cosines = weight.chunk(2, 1)
    return torch.cat([cosines, sines], 1)


def told_one_less(weight: Matrix, frequency_shift: int) -> Matrix:
    """The matrix for c_noise = n, from one that was made for n + 1.

    cos w (n + 1) and sin w (n + 1) are a rotation by w of cos w n and sin w n. In float64.
    """
    cos, sin = sinusoidal(torch.ones(1, dtype=torch.float64), weight.shape[1], frequency_shift).double()[0].chunk(2)
    cosines, sines = weight.double().chunk(2, 1)
    return torch.cat([cosines * cos + sines * sin, sines * cos - cosines * sin], 1).to(weight.dtype)
