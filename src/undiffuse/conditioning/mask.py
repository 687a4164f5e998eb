"""A map of classes (a mask, a segmentation, a layout), laid beside the sample with one channel per class."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from undiffuse.conditioning.conditioner import Condition
from undiffuse.conditioning.label import check_range
from undiffuse.errors import InputError

WHITE = 255


class Mask(Condition):
    """Maps (B, h, w) of classes 0..classes-1 as one-hot channels, `factor` times enlarged by repeating.

    classes: how many; with 2, white (255) is the same as 1. The null is no class anywhere: 0 in every channel.
    """

    feeds = "image"
    shares_space = True

    def __init__(self, classes: int, factor: int = 1, optional: bool = True) -> None:
        super().__init__()
        for name, value, least in (("classes", classes, 2), ("factor", factor, 1)):
            if value < least:
                raise InputError(f"{name} of a mask must be {least} or more, not {value}")
        self.classes, self.factor, self.optional = classes, factor, optional
        self.register_buffer("absent", torch.zeros(1, classes, 1, 1), persistent=False)

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        return {"classes": max(2, int(train.max()) + 1, int(held_out.max()) + 1)}

    @property
    def channels(self) -> int:
        """How many channels are laid beside the sample."""
        return self.classes

    def read(self, raw: object) -> Int64[Tensor, "batch height width"]:
        """raw: integers or truth values (h, w) or (B, h, w)."""
        values = torch.as_tensor(raw)
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3 or values.is_floating_point() or values.is_complex():
            raise InputError(f"a mask is made of integers (B, H, W), not of {values.dtype} {tuple(values.shape)}")
        values = values.long()
        values = values.masked_fill(values == WHITE, 1) if self.classes == 2 else values
        check_range(values, self.classes)
        return values

    def forward(self, values: Int64[Tensor, "batch _ _"]) -> Float[Tensor, "batch classes _ _"]:
        one_hot = F.one_hot(values, self.classes).movedim(-1, 1).float()
        return one_hot if self.factor == 1 else F.interpolate(one_hot, scale_factor=float(self.factor), mode="nearest")

    def null(self) -> Float[Tensor, "1 classes 1 1"]:
        absent = self.absent
        assert isinstance(absent, Tensor)
        return absent
