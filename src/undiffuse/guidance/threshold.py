"""Estimates of x_0 kept within the range of the data (Saharia et al. 2022, Imagen, section 2.3)."""

import math
from abc import abstractmethod

import torch

from undiffuse.denoiser import BaseDenoiser, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import THRESHOLD, Guidance
from undiffuse.guidance.estimates import with_x0
from undiffuse.schedule import Time


class Threshold(Guidance):
    """x_0 made to lie in [-bound, bound], and the noise that follows from it. A subclass says how, by `limited`.

    The estimate is of x_0, whatever the network predicts: an x_0 within the bound stays what it was bit for bit, and
    the noise, v and score that are read from it stay so up to rounding.

    Raises: InputError for a bound that is not a positive number.
    """

    stage = THRESHOLD

    def __init__(self, denoiser: BaseDenoiser, bound: float) -> None:
        super().__init__(denoiser)
        if not 0 < bound < math.inf:
            raise InputError(f"the bound of x_0 must be above 0 and finite, not {bound}")
        self.bound = bound

    @abstractmethod
    def limited(self, x0: Sample) -> Sample:
        """x_0 within the bound."""

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        plain = self.plain(x_t, t, condition)
        return plain, with_x0(plain, self.limited(plain.x0))


class StaticThreshold(Threshold):
    """x_0 clipped to [-bound, bound]."""

    def __init__(self, denoiser: BaseDenoiser, bound: float = 1.0) -> None:
        super().__init__(denoiser, bound)

    def limited(self, x0: Sample) -> Sample:
        return x0.clamp(-self.bound, self.bound)


class DynamicThreshold(Threshold):
    """x_0 clipped to [-s, s] and multiplied by bound / s, with s = max(bound, a percentile of |x_0|) per sample.

    percentile: in (0, 1], the share of a sample's elements that lie below s; Imagen uses 0.995. Between two elements
    it is interpolated linearly, as in `torch.quantile`.
    """

    def __init__(self, denoiser: BaseDenoiser, percentile: float = 0.995, bound: float = 1.0) -> None:
        super().__init__(denoiser, bound)
        if not 0 < percentile <= 1:
            raise InputError(f"the percentile of thresholding lies in (0, 1], not at {percentile}")
        self.percentile = percentile

    def limited(self, x0: Sample) -> Sample:
        s = quantile(x0.abs(), self.percentile).clamp(min=self.bound)
        return x0.clamp(-s, s) * (self.bound / s)


def quantile(x: Sample, q: float) -> Sample:
    """The q-quantile of each sample, (B, 1, ...), for batches of any size: `torch.quantile` takes 2^24 elements."""
    flat = x.flatten(1)
    rank = q * (flat.shape[1] - 1)
    below = math.floor(rank)
    top = flat.topk(flat.shape[1] - below, dim=1).values  # from the largest down to the one at `below`
    lower, upper = top[:, -1], top[:, -2] if top.shape[1] > 1 else top[:, -1]
    return torch.lerp(lower, upper, rank - below).reshape(-1, *[1] * (x.ndim - 1))
