"""Measurements of small pictures (2, 4, 4), and their matrices, worked out column by column."""

import torch

from undiffuse.guidance import Blurred, Downsampled, Masked

SHAPE = (2, 4, 4)
SIZE = 32
_generator = torch.Generator().manual_seed(7)
_PROJECTION = torch.randn(5, SIZE, generator=_generator, dtype=torch.float64)
HOLE = torch.rand(1, 4, 4, generator=_generator) < 0.5


def projected(x0):
    """A user's own: five numbers of each picture."""
    return x0.flatten(1) @ _PROJECTION.T.to(x0)


MEASUREMENTS = {
    "masked": Masked(HOLE),
    "masked per channel": Masked(torch.rand(SHAPE, generator=_generator) < 0.5),
    "gaussian blur": Blurred.gaussian(0.5),
    "lopsided blur": Blurred(torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.4, -0.3], [0.0, 0.1, 0.2]])),
    "downsampled": Downsampled(2),
    "own": projected,
}


def matrix(measure):
    """A (M, 32), float64."""
    basis = torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)
    return measure(basis).flatten(1).T
