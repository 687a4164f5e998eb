"""Linear measurements y = A x_0 + n of pictures."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import beside, rows_of

Linear = Callable[[Tensor], Tensor]  # A: samples (B, ...) -> measurements (B, ...), linear, each of its own sample
Images = Float[Tensor, "batch channels height width"]
Held = TypeVar("Held")


class Measurement(ABC):
    """A linear map of samples (B, ...) to what is measured of them, (B, ...).

    Any callable that is linear and differentiable will do in its place; one that holds something for each sample also
    needs `rows`. What it holds is copied to the samples' device at every call, unless it is there.
    """

    @abstractmethod
    def forward(self, x0: Sample) -> Sample:
        """A x_0."""

    def __call__(self, x0: Sample) -> Sample:
        return self.forward(x0)

    @property
    def batch(self) -> int:
        """For how many samples it holds something of their own; 1 where it is one for all."""
        return 1

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Measurement":
        """This measurement for some samples of its batch."""
        return self


class Masked(Measurement):
    """What a mask shows, 0 elsewhere (inpainting): A x_0 = mask x_0, so that y has the shape of the sample.

    mask: (C, H, W) or (1, H, W) for all samples, or (B, C, H, W) or (B, 1, H, W); true, or 1, where it is
    known.

    Raises: InputError for a mask of another number of axes, or of other values than 0 and 1.
    """

    def __init__(self, mask: Tensor) -> None:
        mask = torch.as_tensor(mask)
        if mask.ndim not in (3, 4) or not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(
                f"a mask is 0 or 1 (or bool), of shape (C, H, W), (1, H, W) or with a batch in front, not {mask.dtype} "
                f"{tuple(mask.shape)} between {float(mask.min()):.4g} and {float(mask.max()):.4g}"
            )
        self.mask = mask if mask.ndim == 4 else mask[None]

    @property
    def batch(self) -> int:
        return len(self.mask)

    def forward(self, x0: Images) -> Images:
        seen: Tensor = beside(self.mask, x0) * x0
        if seen.shape != x0.shape:
            raise InputError(f"a mask of {tuple(self.mask.shape)} is none of samples of {tuple(x0.shape)}")
        return seen

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Masked":
        if len(self.mask) == 1:
            return self
        chosen = copy.copy(self)  # what is a mask stays one, and asking would wait for its device
        chosen.mask = self.mask[index.to(self.mask.device, non_blocking=True)]
        return chosen


class Blurred(Measurement):
    """Each channel convolved with one kernel (kh, kw), of odd sides; beyond its border a picture is its reflection.

    The kernel is centred and is not flipped: y[i, j] = sum_kl kernel[k, l] x[i + k - kh // 2, j + l - kw // 2].

    Raises: InputError for a kernel of another shape or with entries that are not finite, and at a picture that is not
    larger than half the kernel.
    """

    def __init__(self, kernel: Float[Tensor, "..."]) -> None:
        if kernel.ndim != 2 or any(side % 2 == 0 for side in kernel.shape) or not bool(kernel.isfinite().all()):
            raise InputError(
                f"a blur's kernel is finite, of shape (kh, kw), both odd, not of shape {tuple(kernel.shape)}"
            )
        self.kernel = kernel

    @classmethod
    def gaussian(cls, std: float) -> "Blurred":
        """A Gaussian of this standard deviation in pixels, cut at 3 of them, with sum 1."""
        if not (math.isfinite(std) and std > 0):
            raise InputError(f"the standard deviation of a blur is above 0 pixels, not {std}")
        reach = math.ceil(3 * std)
        line = torch.arange(-reach, reach + 1, dtype=torch.float64).div(std).square().mul(-0.5).exp()
        line = line / line.sum()
        return cls(line[:, None] * line)

    def forward(self, x0: Images) -> Images:
        high, wide = (side // 2 for side in self.kernel.shape)
        if x0.shape[-2] <= high or x0.shape[-1] <= wide:
            raise InputError(
                f"a kernel of {tuple(self.kernel.shape)} needs pictures of more than {high} x {wide} pixels, "
                f"not of {tuple(x0.shape[-2:])}"
            )
        flat = F.pad(x0, (wide, wide, high, high), mode="reflect").flatten(0, 1)[:, None]
        return F.conv2d(flat, beside(self.kernel, x0)[None, None]).reshape(x0.shape)


class Downsampled(Measurement):
    """The mean of each `factor` x `factor` block of pixels (super-resolution).

    Raises: InputError for a factor below 1, and at a picture whose sides are not multiples of it.
    """

    def __init__(self, factor: int) -> None:
        if factor < 1:
            raise InputError(f"the factor must be 1 or more, not {factor}")
        self.factor = factor

    def forward(self, x0: Images) -> Float[Tensor, "batch channels _ _"]:
        if x0.shape[-2] % self.factor or x0.shape[-1] % self.factor:
            raise InputError(
                f"pictures of {tuple(x0.shape[-2:])} do not divide into blocks of {self.factor} x {self.factor}"
            )
        return F.avg_pool2d(x0, self.factor)


class Misfit:
    """|A x_0 - y| of each sample (B,), a distance for `Steered`. y: (B, ...), or (1, ...) for all."""

    def __init__(self, measure: Linear, y: Float[Tensor, "..."]) -> None:
        self.measure, self.y = measure, torch.as_tensor(y)

    @property
    def batch(self) -> int:
        """For how many samples it holds something of their own."""
        return max(len(self.y), getattr(self.measure, "batch", 1))

    def __call__(self, x0: Sample) -> Float[Tensor, " batch"]:
        seen = self.measure(x0)
        check_measured(self.y, seen)
        return torch.linalg.vector_norm((seen - beside(self.y, seen)).flatten(1), dim=1)

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Misfit":
        return Misfit(rows_of(self.measure, index), rows_of(self.y, index))


def check_measured(y: Tensor, seen: Tensor) -> None:
    """Raises: InputError unless `y` is one measurement like those `seen`, or one for each."""
    if y.shape[1:] != seen.shape[1:] or len(y) not in (1, len(seen)):
        raise InputError(
            f"y is {tuple(y.shape)}, but what is measured of these samples is {tuple(seen.shape)}: "
            "give one for each, or one for all with 1 in front"
        )
