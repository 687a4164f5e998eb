"""Pixels as the numbers a network sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

from undiffuse.errors import InputError


@dataclass(frozen=True)
class Pixels:
    """Bytes 0 to 255 as floats -1 to 1, `x = v / 127.5 - 1`, and back by rounding: all 256 values come back exactly."""

    def encode(
        self, images: Shaped[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch channels height width"]:
        """Floats in [-1, 1] for uint8 images. Raises: InputError for another type."""
        if images.dtype != torch.uint8:
            raise InputError(f"images are {images.dtype}: uint8 (0..255) is allowed")
        return images.float() / 127.5 - 1

    def decode(self, x: Float[Tensor, "batch channels height width"]) -> UInt8[Tensor, "batch channels height width"]:
        """The nearest bytes. What lies outside [-1, 1] is clamped; NaN becomes black, with no wait for the device."""
        return ((x.float().nan_to_num(nan=-1.0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
