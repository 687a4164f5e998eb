"""Linear measurements y = A x_0 + n of pictures, their adjoints, and least squares with them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.errors import InputError
from undiffuse.schedule import along_batch

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
        if mask.ndim not in (3, 4) or not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(
                f"a mask is 0 or 1 (or bool), of shape (C, H, W), (1, H, W) or with a batch in front, not {mask.dtype} "
                f"{tuple(mask.shape)} between {float(mask.min()):.4g} and {float(mask.max()):.4g}"
            )
        self.mask = mask if mask.ndim == 4 else mask[None]

    def forward(self, x0: Images) -> Images:
        return self.mask.to(x0) * x0

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Masked":
        return self if len(self.mask) == 1 else Masked(self.mask[index.to(self.mask.device)])


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
        return F.conv2d(flat, self.kernel.to(x0)[None, None]).reshape(x0.shape)


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
        self.measure, self.y = measure, y

    def __call__(self, x0: Sample) -> Float[Tensor, " batch"]:
        seen = self.measure(x0)
        check_measured(self.y, seen)
        return torch.linalg.vector_norm((seen - self.y.to(seen)).flatten(1), dim=1)

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Misfit":
        y = self.y[index.to(self.y.device)] if len(self.y) > 1 else self.y
        return Misfit(rows_of(self.measure, index), y)


def rows_of(held: Held, index: Int64[Tensor, " chosen"]) -> Held:
    """`held.rows(index)`, for what has it; else `held`, which is one for all samples."""
    rows = getattr(held, "rows", None)
    return held if rows is None else cast(Held, rows(index))


def check_measured(y: Tensor, seen: Tensor) -> None:
    """Raises: InputError unless `y` is one measurement like those `seen`, or one for each."""
    if y.shape[1:] != seen.shape[1:] or len(y) not in (1, len(seen)):
        raise InputError(
            f"y is {tuple(y.shape)}, but what is measured of these samples is {tuple(seen.shape)}: "
            "give one for each, or one for all with 1 in front"
        )


def adjoint(measure: Linear, like: Sample) -> Linear:
    """A^T, from measurements of samples like these back to such samples: the gradient of <A x, y>.

    A is linear, so it is the same at every x. Raises: InputError where no gradient comes through.
    """
    with torch.enable_grad():
        x = torch.zeros_like(like).requires_grad_()
        seen = measure(x)
    if not seen.requires_grad:
        raise InputError(f"the measurement {measure!r} must be differentiable, but its result has no gradient")

    def back(y: Tensor) -> Tensor:
        return torch.autograd.grad(seen, x, y.expand_as(seen), retain_graph=True)[0]

    return back


def dots(u: Sample, v: Sample) -> Float[Tensor, " batch"]:
    """<u, v> of each sample."""
    return (u * v).flatten(1).sum(1)


def per_sample(value: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """A number for each sample, on its device, ready to multiply `like` (B, ...)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def least_squares(
    measure: Linear, y: Sample, like: Sample, ridge: Float64[Tensor, " batch"], iterations: int
) -> Sample:
    """x (B, ...) of the shape of `like` with the least |A x - y|^2 + ridge |x|^2, which is A^T (A A^T + ridge)^-1 y.

    Where ridge is 0 it is the pseudo-inverse A^+ y, and what of y no x gives is left alone. By so many conjugate
    gradients: fewer than A has distinct singular values stop short of it, and hold back the smallest of them.
    ridge: on the host, 0 or above. Nothing waits for the device: a sample that has converged stands still.

    Source: CGLS (Hestenes & Stiefel 1952; Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1).
    """
    back, damping = adjoint(measure, like), along_batch(ridge, like)

    def squared(v: Tensor) -> Tensor:
        return per_sample(dots(v, v), like)

    x = torch.zeros_like(like)
    residual = y
    direction = slope = back(residual)
    first = now = squared(slope)
    least = first * torch.finfo(like.dtype).eps ** 2
    for _ in range(iterations):
        seen = measure(direction)
        curvature = squared(seen) + damping * squared(direction)
        step = torch.where((now > least) & (curvature > 0), now / curvature, 0.0)
        x = x + step * direction
        residual = residual - per_sample(step.flatten(), residual) * seen
        slope = back(residual) - damping * x
        before, now = now, squared(slope)
        direction = slope + torch.where(before > least, now / before, 0.0) * direction
    return x
