"""A vector of numbers (a measurement, an attribute, a feature) as a condition."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError


class Vector(Condition):
    """Vectors (B, size) through a small network to (B, width), added to the embedding of the noise level."""

    feeds = "vector"

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.project = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.absent = nn.Parameter(torch.randn(1, width))

    def read(self, raw: object) -> Float[Tensor, "batch size"]:
        values = torch.as_tensor(raw, dtype=torch.float32)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != self.size:
            raise InputError(f"a vector condition must have shape (B, {self.size}), not {tuple(values.shape)}")
        if values.device.type == "cpu" and not bool(values.isfinite().all()):
            raise InputError("a vector condition must be finite, but holds NaN or infinity")
        return values

    def forward(self, values: Float[Tensor, "batch size"]) -> Float[Tensor, "batch width"]:
        encoded: Tensor = self.project(values)
        return encoded

    def null(self) -> Float[Tensor, "1 width"]:
        return self.absent
