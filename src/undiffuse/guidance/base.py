"""What every guidance is: a denoiser that knows both estimates, the one without it and the one with it.

Guidances compose by wrapping one another. What contrasts estimates of a network stands innermost, thresholding
outermost, and what lies between may stand in any order:

    DynamicThreshold(Interval(Rescaled(ClassifierFree(denoiser, 3.0), 0.7), -2, 5))
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Encoded, Estimate, Given, Sample, Wrapper
from undiffuse.errors import InputError
from undiffuse.prediction import x0_of
from undiffuse.schedule import Time, along_batch, host

CONTRAST, STEER, THRESHOLD = 0, 1, 2  # from the innermost to the outermost
UNTOLD = -30.0  # log-SNR below which x_t says nothing in float32: gradients there are rounding, divided by alpha
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
        self.check_inside(denoiser)

    def check_inside(self, denoiser: BaseDenoiser) -> None:
        """Raises: InputError for a denoiser that this guidance does not go around."""
        if isinstance(denoiser, Given):
            raise InputError(f"{type(self).__name__} goes around a denoiser, and its condition is given after that")
        if isinstance(denoiser, Guidance) and denoiser.stage > self.stage:
            outer, inner = type(denoiser).__name__, type(self).__name__
            raise InputError(f"{outer} belongs outside {inner}: write {outer}({inner}(...))")

    def check_batch(self, batch: int) -> None:
        """Raises: InputError where what is held per sample, here or inside, is for another number of samples."""
        if isinstance(self.denoiser, Guidance):
            self.denoiser.check_batch(batch)
        for name in self.held:
            value = getattr(self, name)
            if value.ndim and len(value) not in (1, batch):
                raise InputError(
                    f"{type(self).__name__} holds {len(value)} values of {name} for {batch} samples: give 1 or {batch}"
                )

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


def mixed(estimates: Sequence[Estimate], weights: Float64[Tensor, "rows estimates"]) -> Estimate:
    """sum_k w_k estimate_k, per sample (or one row for all), on what the last says; exact where one weight is 1.

    The weights add up to 1, so it is the same estimate whichever of x_0, noise, v or score is combined. The learned
    variance is not extrapolated: it is that of the estimate with the largest weight.
    """
    last = estimates[-1]
    outputs = [e.output if e.target == last.target else e.combination(last.target) for e in estimates]
    fractions = [e.variance_fraction for e in estimates if e.variance_fraction is not None]
    fraction = last.variance_fraction
    if len(fractions) == len(estimates):
        fraction = _sum(fractions, torch.eye(len(estimates), dtype=torch.float64)[weights.argmax(1)])
    return Estimate(last.x_t, _sum(outputs, weights), last.level, last.target, fraction)


def _sum(values: Sequence[Sample], weights: Float64[Tensor, "rows values"]) -> Sample:
    """sum_k w_k value_k; whether a sample's weights are its own or those of all, it is the same bit for bit."""
    terms = []
    for value, weight in zip(values, weights.T, strict=True):
        if len(weight) > 1:
            terms.append(along_batch(weight, value) * value)
        elif factor := float(weight):
            terms.append(value if factor == 1.0 else factor * value)
    return reduce(torch.add, terms)


def between(near: Estimate, far: Estimate, scale: Float64[Tensor, "..."]) -> Estimate:
    """near + scale (far - near), per sample, on what `far` says; exact at scale 0 and 1."""
    scale = scale.reshape(-1)
    return mixed([near, far], torch.stack([1 - scale, scale], 1))


def with_x0(estimate: Estimate, x0: Sample) -> Estimate:
    """The estimate that says x_0 is `x0`, and of all else what `estimate` says."""
    return Estimate(estimate.x_t, x0, estimate.level, x0_of, estimate.variance_fraction)


def tilted(estimate: Estimate, gradient: Sample, scale: Float64[Tensor, "..."]) -> Estimate:
    """The estimate under the density p(x_t) times exp(scale log p(y | x_t)), whose gradient in x_t is `gradient`.

        noise~ = noise - sigma scale gradient,     x_0~ = x_0 + sigma^2 / alpha scale gradient,
        F~ = F - sigma / alpha (alpha b - sigma a) scale gradient     for F = a x_0 + b noise

    on what the network predicts (Dhariwal & Nichol 2021, algorithm 2). gradient: (B, ...); scale: () or (B,). Where
    alpha is 0, x_t says nothing of y, and the estimate stays as it is.
    """
    level, output = estimate.level, estimate.output
    a, b = estimate.target(level)
    told = level.log_snr > UNTOLD
    ratio = torch.where(told, level.sigma / level.alpha.where(told, 1.0), 0.0)
    factor = along_batch((-ratio * (level.alpha * b - level.sigma * a) * scale).expand(len(output)), output)
    return replace(estimate, output=output + factor * gradient.to(output.dtype))


def chosen(values: Encoded, index: Int64[Tensor, " chosen"]) -> dict[str, Tensor]:
    """Some samples' encoded conditions; what stands for all stays."""
    return {name: value[index.to(value.device)] if len(value) > 1 else value for name, value in values.items()}


class Tempered(Guidance):
    """What goes around a guidance and takes some of it back. Raises: InputError around a denoiser that is none."""

    denoiser: Guidance

    def check_inside(self, denoiser: BaseDenoiser) -> None:
        super().check_inside(denoiser)
        if not isinstance(denoiser, Guidance):
            raise InputError(
                f"{type(self).__name__} goes around a guidance, such as ClassifierFree(denoiser, 3.0), "
                f"not around {type(denoiser).__name__}"
            )

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return self.denoiser.plain(x_t, t, condition)
