"""The noise from which a sampler makes a given sample: the probability flow run up (DDIM inversion and its kin)."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.samplers import Sampler, sample
from undiffuse.samplers.base import Grid


class Inversion(NamedTuple):
    """noise: (B, ...), standing at times[0]; round_trip: (B,), the root-mean-square difference between x0 and what
    the sampler makes of `noise` on the same grid.
    """

    noise: Sample
    round_trip: Float[Tensor, " batch"]


def invert(denoiser: BaseDenoiser, sampler: Sampler, x0: Sample, times: Float[Tensor, " points"] | Grid) -> Inversion:
    """Walk x0 (B, ...) up the falling grid `times`, by the same steps that sample, and down again to see what is lost.

    The round trip is not exact: each step up has its estimate at the lower level, each step down at the upper one. It
    falls with more steps; guidance above 1 makes it worse. What it is, is measured here, at as many evaluations again.

    Raises: InputError for a grid that does not fall, and for a sampler that draws noise.
    """
    if not bool((times[0] > times[-1]).all()):
        raise InputError("an inversion takes the grid that samples, which falls, and walks it up")
    noise = sample(denoiser, sampler, x0, times.flip(0))
    back = sample(denoiser, sampler, noise, times)
    return Inversion(noise, (back - x0).flatten(1).square().mean(1).sqrt())
