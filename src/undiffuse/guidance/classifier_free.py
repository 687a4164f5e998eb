"""Classifier-free guidance (Ho & Salimans 2022), from no condition or from a negative one."""

from collections.abc import Mapping

import torch

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded
from undiffuse.errors import InputError
from undiffuse.guidance.base import Scale, scale_of
from undiffuse.guidance.contrast import Contrast, stacked


class ClassifierFree(Contrast):
    """guided = null + scale (conditional - null), both from one evaluation of twice the batch.

    scale: a number, or one per sample (B,): 0 is unconditional, 1 plain conditional, above 1 guided. (In the form
    (1 + w) conditional - w null, which is also in use, w = scale - 1.)
    negative: raw conditions, for all samples or for each, that stand in the null's place, to guide away from ("negative
    prompt"); conditions that it does not name have their null there. sequential: two evaluations of the batch, where
    memory is short.

    Where the scale is 1 for all samples only the conditional is evaluated, where it is 0 only the null. The
    extrapolation is done on what the network predicts; since its two weights add up to 1, it is the same extrapolation
    in noise, x_0, v or score.
    """

    held = (*Contrast.held, "negative")

    def __init__(
        self,
        denoiser: BaseDenoiser,
        scale: Scale,
        *,
        negative: Mapping[str, object] | None = None,
        sequential: bool = False,
    ) -> None:
        scales = scale_of(scale, "guidance").reshape(-1, 1)
        super().__init__(denoiser, scales, torch.ones(1, 1, dtype=torch.float64), sequential)
        self.negative = None if negative is None else denoiser.read(negative)

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """Per input (B, 2, ...): the null or the negative, then the condition."""
        if not condition and not self.negative:
            raise InputError("classifier-free guidance needs a condition to guide to; give one, or leave guidance out")
        return stacked([null(self.denoiser, condition, self.negative), self.denoiser.encode(condition, drop)])


def null(denoiser: BaseDenoiser, condition: Mapping[str, object], negative: Mapping[str, object] | None) -> Encoded:
    """What a condition is contrasted with: its null, but for what the negative names, and for what has no null."""
    if not negative:  # all dropped, not none given: a condition without a null stands on both sides
        return denoiser.encode(condition, torch.ones(1, dtype=torch.bool))
    kept = {name: value for name, value in condition.items() if name not in denoiser.droppable}
    return denoiser.encode({**kept, **negative})
