"""A vector of numbers (a measurement, an attribute, a feature) as a condition."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError


class Vector(Condition):
    """Vectors (B, size) through a small network to (B, width), added to the embedding of the noise level.

    mean, std: of each number over the training set; numbers of any scale then reach the network as others do.
    optional: whether a learned vector stands for what is not given.
    """

    feeds = "vector"

    def __init__(
        self,
        size: int,
        width: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        optional: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.optional = size, optional
        self.mean: Tensor
        self.std: Tensor
        for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = [default] * size if values is None else values
            if len(values) != size:
                raise InputError(f"{name} must have {size} numbers, not {len(values)}")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        self.project = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.absent = nn.Parameter(torch.randn(1, width)) if optional else None

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        mean, std = train.double().mean(0), train.double().std(0, correction=0)
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, 1.0)  # a constant stays where it is
        return {
            "size": train.shape[1],
            "mean": [float(f"{value:.6g}") for value in mean],
            "std": [float(f"{value:.6g}") for value in std],
        }

    def read(self, raw: object) -> Float[Tensor, "batch size"]:
        """raw: (size,) or (B, size); where the size is 1, a number or (B,)."""
        try:
            values = torch.as_tensor(raw, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"a vector condition is made of numbers, not {raw!r:.80}") from error
        if self.size == 1 and values.ndim < 2:
            values = values.reshape(-1, 1)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != self.size:
            raise InputError(f"a vector condition must have shape (B, {self.size}), not {tuple(values.shape)}")
        if values.device.type == "cpu" and not bool(values.isfinite().all()):
            raise InputError("a vector condition must be finite, but holds NaN or infinity")
        return values

    def forward(self, values: Float[Tensor, "batch size"]) -> Float[Tensor, "batch width"]:
        encoded: Tensor = self.project((values - self.mean) / self.std)
        return encoded

    def null(self) -> Float[Tensor, "1 width"]:
        assert self.absent is not None
        return self.absent
