"""The reverse-time SDE by Euler-Maruyama (Song et al. 2021)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.samplers.base import Grid
from undiffuse.samplers.linear import LinearSampler
from undiffuse.schedule import Host, Schedule


@dataclass(frozen=True)
class EulerMaruyama(LinearSampler):
    """dx = [f x - g^2 score] dt + g dw with time running down, in the schedule's own time: weak order 1.

    score = (alpha x0_hat - x) / sigma^2. Where alpha = 0, f and g^2 are infinite: start at an earlier time.
    """

    brownian: bool = False
    stochastic = True

    def clock(self, schedule: Schedule, t: Host) -> Host:
        return -schedule.log_snr(t)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t = times[:-1]
        dt = t - times[1:]
        f, g_squared = schedule.drift(t), schedule.diffusion_squared(t)
        pull = g_squared * dt / schedule.sigma(t).square()
        return torch.stack([1 - f * dt - pull, pull * schedule.alpha(t), (g_squared * dt).sqrt()], 1)
