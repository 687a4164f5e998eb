"""Pictures as conditions: laid beside the sample (super-resolution, translation), or encoded as one vector."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError, unknown

SOURCES = ("data", "sample")


def read_images(raw: object, channels: int) -> Shaped[Tensor, "batch channels height width"]:
    """Pictures as a tensor with channels first. Raises: InputError.

    raw: a tensor (C, H, W) or (B, C, H, W), or an array as pictures are sampled and saved, (H, W) or (H, W, C) with or
    without B in front; uint8, or floats in the numbers the network sees.
    """
    if isinstance(raw, np.ndarray):
        axes = raw.ndim if channels > 1 or (raw.ndim > 2 and raw.shape[-1] == 1) else raw.ndim + 1
        values = torch.from_numpy(np.ascontiguousarray(raw)).reshape(*raw.shape, *[1] * (axes - raw.ndim))
        values = values.movedim(-1, -3) if values.ndim >= 3 else values
    elif isinstance(raw, Tensor):
        values = raw
    else:
        raise InputError(f"a picture is an array (H, W, C) or a tensor (C, H, W), not {type(raw).__name__}")
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[1] != channels:
        raise InputError(
            f"a picture condition must have {channels} channels, (B, {channels}, H, W), not {tuple(values.shape)}"
        )
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise InputError(f"a picture condition is uint8, or floats as the network sees them, not {values.dtype}")
    if values.is_floating_point() and values.device.type == "cpu" and not bool(values.isfinite().all()):
        raise InputError("a picture condition must be finite, but holds NaN or infinity")
    return values


def as_floats(values: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Bytes 0 to 255 as -1 to 1; floats as they are."""
    return values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values.float()


class Image(Condition):
    """Pictures (B, C, h, w), `factor` times enlarged and laid beside the sample as channels more.

    channels: of the pictures; factor: by which the sample is larger than the picture each way, bicubic (Keys 1981, with
    torch's a = -0.75).
    of: "data", pictures that come with the data; or "sample", the sample itself made `factor` times smaller by
    averaging, for super-resolution (Saharia et al. 2021). optional: whether one learned colour stands for no picture.
    """

    feeds = "image"
    shares_space = True

    def __init__(
        self, channels: int, factor: int = 1, of: Literal["data", "sample"] = "data", optional: bool = True
    ) -> None:
        super().__init__()
        if of not in SOURCES:
            raise unknown("source of a picture condition", of, SOURCES)
        if factor < 1:
            raise InputError(f"the factor of a picture condition must be 1 or more, not {factor}")
        if of == "sample" and factor < 2:
            raise InputError(
                f"a picture made of the sample needs a factor of 2 or more, not {factor}: else it is the answer"
            )
        self.channels, self.factor, self.optional, self.derived = channels, factor, optional, of == "sample"
        self.absent = nn.Parameter(torch.zeros(1, channels, 1, 1)) if optional else None

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        return {"channels": train.shape[1]}

    @classmethod
    def derives(cls, arguments: Mapping[str, Any]) -> bool:
        return arguments.get("of") == "sample"

    def derive(self, samples: Tensor) -> Tensor:
        for size in samples.shape[2:]:
            if size % self.factor:
                raise InputError(f"samples of {size} pixels cannot be made {self.factor} times smaller")
        return F.avg_pool2d(samples.float(), self.factor).round().to(torch.uint8)

    def read(self, raw: object) -> Shaped[Tensor, "batch channels height width"]:
        return read_images(raw, self.channels)

    def forward(self, values: Shaped[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch channels _ _"]:
        return enlarged(as_floats(values), self.factor)

    def null(self) -> Float[Tensor, "1 channels 1 1"]:
        assert self.absent is not None
        return self.absent


def enlarged(x: Float[Tensor, "batch channels _ _"], factor: int) -> Float[Tensor, "batch channels _ _"]:
    """x `factor` times larger each way, bicubic."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)


class EncodedImage(Condition):
    """Pictures (B, C, h, w) of any size, through a small convolutional network to (B, width): what is shown, not where.

    optional: whether a learned vector stands for no picture.
    """

    feeds = "vector"

    def __init__(self, channels: int, width: int, optional: bool = True) -> None:
        super().__init__()
        self.channels, self.optional = channels, optional
        layers: list[nn.Module] = []
        for inside, outside in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside), nn.SiLU()]
        self.convolutions, self.project = nn.Sequential(*layers), nn.Linear(128, width)
        self.absent = nn.Parameter(torch.randn(1, width)) if optional else None

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        return {"channels": train.shape[1]}

    def read(self, raw: object) -> Shaped[Tensor, "batch channels height width"]:
        return read_images(raw, self.channels)

    def forward(self, values: Shaped[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch width"]:
        encoded: Tensor = self.project(self.convolutions(as_floats(values)).mean((2, 3)))
        return encoded

    def null(self) -> Float[Tensor, "1 width"]:
        assert self.absent is not None
        return self.absent
