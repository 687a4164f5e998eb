"""Group normalisation whose scale and shift may differ per sample, with or without the activation after it."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse import kernels
from undiffuse.networks.ordinary import differentiated, ordinary

Feature = Float[Tensor, "batch channels *space"]
PerChannel = Float[Tensor, "rows channels"]  # rows: batch, or 1 for all


def like(per_channel: Tensor, x: Tensor) -> Tensor:
    """(B, C) or (C,) ready to meet x (B, C, *space)."""
    return per_channel.reshape(*per_channel.shape, *[1] * (x.ndim - 2))


def normalised(x: Feature, scale: PerChannel, shift: PerChannel, groups: int, epsilon: float, silu: bool) -> Feature:
    """(x - mean) / std * scale + shift, over the space and each group of channels, or silu of it.

    Sums in float32 or better, then one multiply-add per element that holds normalisation and modulation alike.
    """
    size = x.shape[1] // groups
    count = x.shape[2:].numel() * size
    wide = torch.promote_types(x.dtype, torch.float32)

    def per_channel(values: Tensor) -> Tensor:  # the mean over a group, repeated for each of its channels
        total = values.flatten(2).transpose(1, 2).sum(1, dtype=wide).unflatten(1, (groups, -1)).sum(-1)
        mean: Tensor = (total / count).repeat_interleave(size, 1)
        return mean

    mean = per_channel(x)
    pivot = mean.to(x.dtype)
    # centred before it is squared, so that a large mean costs no digits; the rest is what rounding the mean left
    centred, rest = x - like(pivot, x), mean - pivot.to(wide)
    # a float16 may overflow when squared; a bfloat16 loses but digits, and is summed up in float32
    squared = (centred.to(wide) if x.dtype == torch.float16 else centred).square()
    scale = scale * torch.rsqrt((per_channel(squared) - rest * rest).clamp(min=0) + epsilon)
    shift = shift - rest * scale
    z = torch.addcmul(like(shift.to(x.dtype), x), centred, like(scale.to(x.dtype), x))
    return F.silu(z) if silu else z


def _rows(x: Feature) -> Float[Tensor, "batch positions channels"]:
    return x.flatten(2).transpose(1, 2)  # of channels-last memory a view


class _Normalised(torch.autograd.Function):
    """`normalised` by the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, epsilon: float, silu: bool) -> Tensor:
        y, mean, rstd = kernels.normalise(_rows(x), scale, shift, groups, epsilon, silu)
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        ctx.told = groups, epsilon, silu
        return y.transpose(1, 2).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        groups, epsilon, silu = ctx.told
        if torch.is_grad_enabled() or not ordinary(gradient):  # a derivative of the derivative, say: of the formula
            formula = partial(normalised, groups=groups, epsilon=epsilon, silu=silu)
            return (*differentiated(formula, (x, scale, shift), gradient), None, None, None)
        rows = _rows(x)
        given = _rows(gradient.to(x.dtype)).contiguous()
        of_x, of_scale, of_shift = kernels.normalise_backward(given, rows, scale, shift, mean, rstd, groups, silu)
        if len(scale) == 1:  # of all samples together
            of_scale, of_shift = of_scale.sum(0, keepdim=True), of_shift.sum(0, keepdim=True)
        return of_x.transpose(1, 2).reshape(x.shape), of_scale, of_shift, None, None, None


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) whose scale and shift may differ per sample (Dhariwal & Nichol 2021)."""

    def __init__(self, channels: int, epsilon: float = 1e-5, groups: int = 32) -> None:
        super().__init__()
        self.groups, self.epsilon = math.gcd(groups, channels), epsilon
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Feature, modulation: Float[Tensor, "batch double"] | None = None, silu: bool = False
    ) -> Feature:
        """modulation: (B, 2 C), what is added to a scale of 1, and the shift; silu: of the result."""
        wide = torch.promote_types(x.dtype, torch.float32)
        scale, shift = self.weight.to(wide)[None], self.bias.to(wide)[None]
        if modulation is not None:
            extra_scale, extra_shift = modulation.to(wide).chunk(2, 1)
            scale, shift = scale * (1 + extra_scale), shift * (1 + extra_scale) + extra_shift
        if ordinary(x, scale, shift) and kernels.normalises(_rows(x)):
            y: Tensor = _Normalised.apply(x, scale, shift, self.groups, self.epsilon, silu)
            return y
        return normalised(x, scale, shift, self.groups, self.epsilon, silu)
