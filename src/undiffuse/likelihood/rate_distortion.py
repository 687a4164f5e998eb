"""Rate and distortion: how many bits say how much of a picture, from the terms of a bound by noise levels."""

import math
from typing import NamedTuple

from jaxtyping import Float64
from torch import Tensor

from undiffuse.likelihood.bound import Bound

PerLevel = Float64[Tensor, " draws"]


class RateDistortion(NamedTuple):
    """A curve from noise to data, each value a mean over the samples, float64 (draws,).

    log_snr: the level; rate: bits/dimension with which x_t is told; rate_error: its standard error; distortion: the
    root-mean-square error of x0_hat, then, in values of 0 to 255; distortion_error: its standard error.
    """

    log_snr: PerLevel
    rate: PerLevel
    rate_error: PerLevel
    distortion: PerLevel
    distortion_error: PerLevel


def rate_distortion(bound: Bound) -> RateDistortion:
    """The curve of samples with values in [-1, 1] (Ho et al. 2020, section 4.3).

        rate(t) = (L_T + the terms from t_max down to t) / ln 2
        distortion(t) = 127.5 sqrt(E |x0_hat(x_t) - x_0|^2 / D)

    A level stands in the middle of what its term is of, so half of its own term counts.
    """
    rates = (bound.prior[:, None] + bound.by_level.cumsum(1) - bound.by_level / 2) / math.log(2)
    count = len(rates)
    squared = bound.squared_error.mean(0)
    distortion = 127.5 * squared.sqrt()
    # of a root, by its derivative
    error = 127.5 * bound.squared_error.std(0) / math.sqrt(count) / (2 * squared.sqrt()).clamp(min=1e-300)
    return RateDistortion(bound.log_snr.mean(0), rates.mean(0), rates.std(0) / math.sqrt(count), distortion, error)
