"""Multistep consistency sampling (Song et al. 2023, alg. 1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.samplers.base import Grid
from undiffuse.samplers.linear import LinearSampler
from undiffuse.schedule import Schedule


@dataclass(frozen=True)
class Consistency(LinearSampler):
    """x_s = alpha_s x0_hat + sigma_s z: jump to data, add noise anew.

    For models distilled to jump (their x0_hat is the end of the ODE, not the mean of x_0); one step, or a few.
    """

    brownian: bool = False
    stochastic = True

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        s = times[1:]
        return torch.stack([torch.zeros_like(s), schedule.alpha(s), schedule.sigma(s)], 1)
