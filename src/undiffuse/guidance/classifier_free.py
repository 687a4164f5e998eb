"""Classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Sample, Wrapper
from undiffuse.errors import InputError
from undiffuse.schedule import Time, along_batch, host


class ClassifierFree(Wrapper):
    """guided = null + scale (conditional - null), both from one evaluation of twice the batch.

    scale: a number, or one per sample (B,): 0 is unconditional, 1 plain conditional, above 1 guided. (In the form
    (1 + w) conditional - w null, which is also in use, w = scale - 1.)

    The extrapolation is done on what the network predicts; since its two weights add up to 1, it is the same
    extrapolation in noise, x_0, v or score.
    """

    def __init__(self, denoiser: BaseDenoiser, scale: float | Float[Tensor, " batch"]) -> None:
        super().__init__(denoiser)
        self.scale = host(scale)
        if not bool(self.scale.isfinite().all()):
            raise InputError(f"the guidance scale must be finite, not {scale}")

    def rows(self, index: Int64[Tensor, " chosen"]) -> "ClassifierFree":
        chosen = cast(ClassifierFree, super().rows(index))
        chosen.scale = self.scale[index] if self.scale.ndim else self.scale
        return chosen

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """Per input (B, 2, ...): the null, then the condition."""
        if not condition:
            raise InputError("classifier-free guidance needs a condition to guide to; give one, or leave guidance out")
        # all dropped, not none given: a condition without a null stands on both sides
        null = self.denoiser.encode(condition, torch.ones(1, dtype=torch.bool))
        conditional = self.denoiser.encode(condition, drop)
        return {name: torch.stack([null[name].expand_as(value), value], 1) for name, value in conditional.items()}

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        condition = self.encode({}) if condition is None else condition
        batch = len(x_t)
        pairs = {name: value.expand(batch, *value.shape[1:]).flatten(0, 1) for name, value in condition.items()}
        times = host(t).expand(batch)
        both: Estimate = self.denoiser(x_t.repeat_interleave(2, 0), times.repeat_interleave(2), pairs)
        null, conditional = both.output.unflatten(0, (batch, 2)).unbind(1)
        # lerp is exact at its ends: scale 0 and 1 are the two evaluations bit for bit
        output = torch.lerp(null, conditional, along_batch(self.scale.expand(batch), null).to(null.dtype))
        fraction = None if both.variance_fraction is None else both.variance_fraction[1::2]
        return Estimate(both.x_t[::2], output, self.level(times, batch), both.target, fraction)
