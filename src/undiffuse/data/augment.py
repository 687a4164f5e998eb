"""Augmentations as pure functions of a batch and uniform draws, so that a sample's never depends on its neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from undiffuse.errors import InputError, unknown


@runtime_checkable
class Augmentation(Protocol):
    """Maps a batch uint8 (B, C, H, W) and draws (B, `draws`), uniform in [0, 1), to a batch."""

    @property
    def draws(self) -> int: ...

    def __call__(self, batch: Tensor, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RandomCrop:
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
class Flip:
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
        first = 0
        for step in self.steps:
            batch = step(batch, u[:, first : first + step.draws])
            first += step.draws
        return batch
