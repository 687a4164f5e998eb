"""Features that tests look through, and what is left of looking."""

import torch
from torch import Tensor

from undiffuse.metrics import Moments, Seen


class Flat:
    """Features that are the pixels, between 0 and 1; the first ones are the scores."""

    name, key, is_inception = "flat pixels", "flat", False

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.flatten(1).float() / 255
        return x, x[:, :3]


def seen(features: Tensor, labels: Tensor | None = None, scores: Tensor | None = None, inception: bool = False) -> Seen:
    return Seen("given numbers", "given", Moments.of(features), features, scores, labels, inception)


def normal(n: int, d: int, seed: int = 0, scale: float = 1.0, centre: float = 0.0) -> Tensor:
    return centre + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
