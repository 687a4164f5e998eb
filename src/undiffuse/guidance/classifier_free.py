"""Classifier-free guidance (Ho & Salimans 2022), with negative conditions and mixtures of conditions."""

from collections.abc import Mapping

import torch

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import CONTRAST, Guidance, Scale, between, scale_of
from undiffuse.schedule import Time, host


class ClassifierFree(Guidance):
    """guided = null + scale (conditional - null), both from one evaluation of twice the batch.

    scale: a number, or one per sample (B,): 0 is unconditional, 1 plain conditional, above 1 guided. (In the form
    (1 + w) conditional - w null, which is also in use, w = scale - 1.)

    The extrapolation is done on what the network predicts; since its two weights add up to 1, it is the same
    extrapolation in noise, x_0, v or score.
    """

    stage = CONTRAST
    held = ("scale",)

    def __init__(self, denoiser: BaseDenoiser, scale: Scale) -> None:
        super().__init__(denoiser)
        self.scale = scale_of(scale, "guidance")

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """Per input (B, 2, ...): the null, then the condition."""
        if not condition:
            raise InputError("classifier-free guidance needs a condition to guide to; give one, or leave guidance out")
        # all dropped, not none given: a condition without a null stands on both sides
        null = self.denoiser.encode(condition, torch.ones(1, dtype=torch.bool))
        conditional = self.denoiser.encode(condition, drop)
        return {name: torch.stack([null[name].expand_as(value), value], 1) for name, value in conditional.items()}

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        condition = self.encode({}) if condition is None else condition
        batch = len(x_t)
        pairs = {name: value.expand(batch, *value.shape[1:]).flatten(0, 1) for name, value in condition.items()}
        times = host(t).expand(batch)
        both: Estimate = self.denoiser(x_t.repeat_interleave(2, 0), times.repeat_interleave(2), pairs)
        level = self.level(times, batch)
        fractions = (
            [None] * 2 if both.variance_fraction is None else both.variance_fraction.unflatten(0, (-1, 2)).unbind(1)
        )
        null, conditional = (
            Estimate(both.x_t[::2], output, level, both.target, fraction)
            for output, fraction in zip(both.output.unflatten(0, (batch, 2)).unbind(1), fractions, strict=True)
        )
        return conditional, between(null, conditional, self.scale)

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        condition = self.encode({}) if condition is None else condition
        estimate: Estimate = self.denoiser(x_t, t, {name: value[:, 1] for name, value in condition.items()})
        return estimate
