"""What every guidance is: a denoiser that knows both estimates, the one without it and the one with it.

Guidances compose by wrapping one another. What contrasts estimates of a network stands innermost, thresholding
outermost, and what lies between may stand in any order:

    DynamicThreshold(Interval(Rescaled(ClassifierFree(denoiser, 3.0), 0.7), -2, 5))
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Encoded, Estimate, Given, Sample, Wrapper
from undiffuse.errors import InputError
from undiffuse.schedule import Time, along_batch, host

CONTRAST, STEER, THRESHOLD = 0, 1, 2  # from the innermost to the outermost
Scale = float | Float[Tensor, " batch"]


class Guidance(Wrapper):
    """Denoiser -> Denoiser.

    stage: where it may stand among others; held: names of attributes with a value for each sample, or one for all.

    Raises: InputError around a guidance that belongs outside this one, or around a condition that is filled in.
    """

    stage: ClassVar[int] = STEER
    held: ClassVar[tuple[str, ...]] = ()

    def __init__(self, denoiser: BaseDenoiser) -> None:
        super().__init__(denoiser)
        if isinstance(denoiser, Given):
            raise InputError(f"{type(self).__name__} goes around a denoiser, and its condition is given after that")
        if isinstance(denoiser, Guidance) and denoiser.stage > self.stage:
            outer, inner = type(denoiser).__name__, type(self).__name__
            raise InputError(f"{outer} belongs outside {inner}: write {outer}({inner}(...))")

    @abstractmethod
    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        """(without this guidance, with it): the two estimates at x_t (B, ...)."""

    @abstractmethod
    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        """The estimate without this guidance, under the condition as this guidance encodes it."""

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return self.both(x_t, t, condition)[1]

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Guidance":
        chosen = cast(Guidance, super().rows(index))
        for name in self.held:
            value = getattr(self, name)
            setattr(chosen, name, value[index.to(value.device)] if value.ndim and len(value) > 1 else value)
        return chosen


def scale_of(scale: Scale, what: str) -> Float64[Tensor, "..."]:
    """A scale as float64 on the host, () or (B,). Raises: InputError unless it is finite."""
    scale = host(scale)
    if scale.ndim > 1 or not bool(scale.isfinite().all()):
        raise InputError(f"the {what} scale must be finite, not {scale.tolist()}: a number, or one per sample")
    return scale


def between(near: Estimate, far: Estimate, scale: Float64[Tensor, "..."]) -> Estimate:
    """near + scale (far - near), per sample, on what `far` says; exact at scale 0 and 1.

    The two weights add up to 1, so it is the same estimate whichever of x_0, noise, v or score is combined.
    """
    output = near.output if near.target == far.target else near.combination(far.target)
    factor = along_batch(scale.expand(len(output)), output).to(output.dtype)
    return Estimate(far.x_t, torch.lerp(output, far.output, factor), far.level, far.target, far.variance_fraction)


def tilted(estimate: Estimate, gradient: Sample, scale: Float64[Tensor, "..."]) -> Estimate:
    """The estimate whose score is higher by scale times `gradient` (B, ...), per sample.

        noise~ = noise - sigma scale gradient,    x0~ = x0 + (sigma^2 / alpha) scale gradient,
        F~ = F + (a sigma^2 / alpha - b sigma) scale gradient    for F = a x_0 + b noise

    Where alpha = 0 the score of a sample does not tell x_0, and the estimate stays as it is.
    """
    level = estimate.level
    a, b = estimate.target(level)
    known = level.alpha > 0
    factor = a * level.sigma.square() / level.alpha.where(known, 1.0) - b * level.sigma
    factor = along_batch((factor * scale).where(known, 0.0), gradient)
    output = estimate.output + (factor * gradient).to(estimate.output.dtype)
    return replace(estimate, output=output)


def moved(estimate: Estimate, change: Sample) -> Estimate:
    """The estimate whose x_0 is higher by `change` (B, ...), of the same x_t: F~ = F + (a - b alpha / sigma) change."""
    level = estimate.level
    a, b = estimate.target(level)
    factor = along_batch(a - b * level.alpha / level.sigma, change)
    return replace(estimate, output=estimate.output + (factor * change).to(estimate.output.dtype))


def detached(estimate: Estimate) -> Estimate:
    """The estimate without the graph of its gradient."""
    fraction = estimate.variance_fraction
    return replace(
        estimate,
        x_t=estimate.x_t.detach(),
        output=estimate.output.detach(),
        variance_fraction=None if fraction is None else fraction.detach(),
    )


def chosen(values: Encoded, index: Int64[Tensor, " chosen"]) -> dict[str, Tensor]:
    """Some samples' encoded conditions; what stands for all stays."""
    return {name: value[index.to(value.device)] if len(value) > 1 else value for name, value in values.items()}
