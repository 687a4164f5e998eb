"""Estimates from estimates: mixed, moved along a gradient, said anew. Whatever they predict, and per sample."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import Estimate, Sample
from undiffuse.prediction import x0_of
from undiffuse.schedule import along_batch

UNTOLD = -30.0  # log-SNR below which x_t says nothing in float32: gradients there are rounding, divided by alpha


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
