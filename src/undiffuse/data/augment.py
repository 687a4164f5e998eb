"""Augmentations as pure functions of a batch and uniform draws, so that a sample's never depends on its neighbours."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from undiffuse.errors import InputError, unknown


class Augmentation(ABC):
    """Maps a batch uint8 (B, C, H, W) and draws (B, `draws`), uniform in [0, 1), to a batch."""

    draws: ClassVar[int]

    @abstractmethod
    def __call__(self, batch: Tensor, u: Tensor) -> Tensor: ...

    def describe(self, u: Float[Tensor, "batch _"]) -> Float[Tensor, "batch _"]:
        """What a model is told of it, numbers that are 0 where nothing is done: (B, k), and k = 0 unless it says so."""
        return u[:, :0]


@dataclass(frozen=True)
class RandomCrop(Augmentation):
    """A window of `height` x `width` pixels from anywhere in the picture, every place alike.

    Raises: InputError, when called, if the picture is smaller than the window.
    """

    height: int
    width: int
    draws: ClassVar[int] = 2

    def __call__(
        self, batch: UInt8[Tensor, "batch channels _ _"], u: Float[Tensor, "batch 2"]
    ) -> UInt8[Tensor, "batch channels _ _"]:
        count, channels, height, width = batch.shape
        if height < self.height or width < self.width:
            raise InputError(f"cannot crop {self.height} x {self.width} pixels from pictures of {height} x {width}")
        rows = _starts(u[:, 0], height - self.height)[:, None] + torch.arange(self.height, device=batch.device)
        columns = _starts(u[:, 1], width - self.width)[:, None] + torch.arange(self.width, device=batch.device)
        samples = torch.arange(count, device=batch.device).view(count, 1, 1, 1)
        planes = torch.arange(channels, device=batch.device).view(1, channels, 1, 1)
        return batch[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]


def _starts(u: Tensor, last: int) -> Tensor:
    return (u * (last + 1)).long().clamp(max=last)


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror half of the samples: "horizontal" swaps left and right, "vertical" swaps top and bottom.

    Raises: InputError for another direction.
    """

    direction: str = "horizontal"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.direction not in ("horizontal", "vertical"):
            raise unknown("flip", self.direction, ("horizontal", "vertical"))

    def __call__(
        self, batch: UInt8[Tensor, "batch channels height width"], u: Float[Tensor, "batch 1"]
    ) -> UInt8[Tensor, "batch channels height width"]:
        axis = -1 if self.direction == "horizontal" else -2
        return torch.where(u.view(-1, 1, 1, 1) < 0.5, batch.flip(axis), batch)


@dataclass(frozen=True)
class Geometric(Augmentation):
    """Mirror, scale, turn, stretch and shift at random, and say what was done: non-leaking augmentation.

        mirrored, left and right        if a fair coin says so
        mirrored, top and bottom        if a fair coin says so
        scaled                          by 2^(n / 5)
        turned                          by an angle from U(-pi, pi), from right to down
        stretched, squeezed across      by 2^(n / 5), along a direction from U(-pi / 2, pi / 2)
        shifted right and down          by n / 8 of the width and n / 8 of the height

    in this order, with an n from N(0, 1) in each place. Each line is done with the probability `probability`, on its
    own. All of it is one affine map, applied once: bicubic, the picture mirrored beyond its edges. Pictures that
    nothing is done to keep their bits. Integers that are not uint8 are classes, which are picked and not blended.

    `describe` gives (B, 9): mirrored (2), n of the scale, cos - 1 and sin of the angle, n of the stretch times cos and
    sin of twice its direction, n of the shifts (2). A direction and its opposite are one, and described alike; Karras
    et al. take the direction itself.

    Raises: InputError for a probability outside [0, 1].

    Reference: Karras et al. 2022, appendix F.2; Karras et al. 2020 (ADA), appendix B.
    """

    probability: float = 0.12
    draws: ClassVar[int] = 12

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"the probability of an augmentation must be in [0, 1], not {self.probability}")

    def describe(self, u: Float[Tensor, "batch 12"]) -> Float[Tensor, "batch 9"]:
        return self._told(u).float()

    def _told(self, u: Float[Tensor, "batch 12"]) -> Float[Tensor, "batch 9"]:
        u = u.clamp(2.0**-24, 1 - 2.0**-24)  # within what a normal has a number for
        mirrored = (u[:, :2] < self.probability / 2).to(u.dtype).unbind(1)
        scaled, turned, stretched, shifted = (u[:, 2:6] < self.probability).to(u.dtype).unbind(1)
        scale, stretch, right, down = torch.special.ndtri(u[:, 6:10]).unbind(1)
        angle, axis = (math.pi * (2 * u[:, 10:] - 1)).unbind(1)
        turn, along = (turned * (angle.cos() - 1), turned * angle.sin()), stretched * stretch
        stretches = along * axis.cos(), along * axis.sin()
        return torch.stack([*mirrored, scaled * scale, *turn, *stretches, shifted * right, shifted * down], 1)

    def __call__(
        self, batch: Shaped[Tensor, "batch channels height width"], u: Float[Tensor, "batch 12"]
    ) -> Shaped[Tensor, "batch channels height width"]:
        told = self._told(u)
        grid = F.affine_grid(_origins(told, *batch.shape[2:]).float(), list(batch.shape), align_corners=False)
        mode = "bicubic" if batch.dtype == torch.uint8 or batch.is_floating_point() else "nearest"
        moved = F.grid_sample(batch.float(), grid, mode, padding_mode="reflection", align_corners=False)
        moved = moved.round().clamp(0, 255) if batch.dtype == torch.uint8 else moved
        return torch.where((told != 0).any(1).view(-1, 1, 1, 1), moved.to(batch.dtype), batch)


def _origins(told: Float[Tensor, "batch 9"], height: int, width: int) -> Float[Tensor, "batch 2 3"]:
    """Where each place of the augmented picture comes from, in fractions of half a side: the inverse affine map."""
    rate = math.log(2) / 5
    left_right, top_bottom, scale, cosine_less_1, sine, along, across, right, down = told.unbind(1)
    cosine, shrink = 1 + cosine_less_1, torch.exp(-rate * scale)
    # a stretch by e^s along a direction phi is cosh(s) + sinh(s) (cos 2 phi, sin 2 phi; sin 2 phi, -cos 2 phi)
    amount = torch.hypot(along, across).clamp(min=1e-12)
    straight, slope = torch.cosh(rate * amount), torch.sinh(rate * amount) / amount
    back = _matrix(straight - slope * along, -slope * across, -slope * across, straight + slope * along)
    back = _product(_matrix(cosine, sine, -sine, cosine) * shrink.view(-1, 1, 1), back)
    back = back * torch.stack([1 - 2 * left_right, 1 - 2 * top_bottom], 1)[:, :, None]
    aspect = height / width
    sides = torch.tensor([[1.0, aspect], [1 / aspect, 1.0]], dtype=back.dtype)
    back = back * sides.to(back.device, non_blocking=True)  # made on the device it would wait for it
    shift = torch.stack([right, down], 1)[:, :, None] / 4  # an eighth of a side is a quarter of its half
    return torch.cat([back, -_product(back, shift)], 2)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Float[Tensor, "batch 2 2"]:
    return torch.stack([a, b, c, d], 1).view(-1, 2, 2)


def _product(a: Float[Tensor, "batch 2 2"], b: Float[Tensor, "batch 2 k"]) -> Float[Tensor, "batch 2 k"]:
    """a @ b, summed in one order, so that a sample's does not depend on its neighbours."""
    return (a[:, :, :, None] * b[:, None]).sum(2)


class Augment:
    """One augmentation after the other; `draws` is how many uniform numbers a sample needs in all."""

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = tuple(steps)
        self.draws = sum(step.draws for step in self.steps)

    def __call__(
        self, batch: UInt8[Tensor, "batch channels _ _"], u: Float[Tensor, "batch draws"]
    ) -> UInt8[Tensor, "batch channels _ _"]:
        """The augmented batch, for draws in [0, 1) of shape (B, `draws`).

        Raises: InputError when the draws are of another shape.
        """
        if u.shape != (len(batch), self.draws):
            raise InputError(f"draws have shape {tuple(u.shape)}: {(len(batch), self.draws)} is needed")
        for step, draws in zip(self.steps, self._shares(u), strict=True):
            batch = step(batch, draws)
        return batch

    def describe(self, u: Float[Tensor, "batch draws"]) -> Float[Tensor, "batch _"]:
        """What a model is told of all steps, (B, k)."""
        told = [step.describe(draws) for step, draws in zip(self.steps, self._shares(u), strict=True)]
        return torch.cat(told, 1) if told else u[:, :0]

    def _shares(self, u: Float[Tensor, "batch draws"]) -> Sequence[Tensor]:
        return u.split([step.draws for step in self.steps], 1) if self.steps else ()
