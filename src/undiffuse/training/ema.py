"""Averages of the weights over training (Karras et al. 2024, section 3.1)."""

import functools

import numpy as np
import torch
from torch import nn

from undiffuse.errors import InputError


@functools.cache
def exponent(relative_width: float) -> float:
    """gamma of the power-function average whose standard deviation is `relative_width` of the training so far.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for its positive root (eq. 123 of the paper).
    """
    if not 0 < relative_width < 0.28:
        raise InputError(f"the relative width of the EMA must be in (0, 0.28), not {relative_width}")
    inverse = relative_width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@torch.no_grad()
def update(average: nn.Module, current: nn.Module, step: int, relative_width: float) -> None:
    """Move the average to the weights after `step` steps (from 1): average += (1 - beta) (current - average).

    beta = (1 - 1 / step)^(gamma + 1), so the first step forgets the initial weights and the width grows with the run.
    """
    share = 1 - (1 - 1 / step) ** (exponent(relative_width) + 1)
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), share)
    for kept, now in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(now)
