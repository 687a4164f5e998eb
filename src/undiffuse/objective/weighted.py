"""The weighted squared error, and what is learned beside the mean: an uncertainty of levels, a variance of steps."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.chain import Steps, bound_terms
from undiffuse.denoiser import Denoiser, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.objective.base import BaseObjective
from undiffuse.objective.times import TimeLaw
from undiffuse.objective.uncertainty import Uncertainty
from undiffuse.objective.variational import check_steps
from undiffuse.objective.weight import WEIGHTS, Weight
from undiffuse.registry import build
from undiffuse.schedule import along_batch


class Objective(BaseObjective):
    """The weighted squared error of what the network predicts, averaged over a sample's elements.

    weight: a name in `WEIGHTS`, or an instance; uncertainty: whether a weight of each noise level is learned besides
    (`Uncertainty`); times, drop, drop_each, offset: as in `BaseObjective`.

    Where the network learns its variance, `variance` times the discrete variational bound of `steps` steps is added, in
    bits/dimension, through which the mean does not learn: the hybrid loss (Nichol & Dhariwal 2021, eq. 16).
    levels: of the data's values in [-1, 1], for the bound's last term (256 for 8-bit pictures, None for others).
    """

    def __init__(
        self,
        weight: str | Weight = "simple",
        times: str | TimeLaw = "uniform",
        *,
        drop: float = 0.1,
        drop_each: Mapping[str, float] = MappingProxyType({}),
        offset: float = 0.0,
        uncertainty: bool = False,
        variance: float = 0.001,
        steps: int = 1000,
        levels: int | None = 256,
    ) -> None:
        super().__init__(times, drop=drop, drop_each=drop_each, offset=offset)
        if not variance > 0 or steps < 2:
            raise InputError(f"the bound needs a share above 0 and 2 steps or more, not {variance} and {steps}")
        self.weight = build("weight", WEIGHTS, weight, {}) if isinstance(weight, str) else weight
        if not isinstance(self.weight, Weight):
            raise InputError(f"a weight is a name ({', '.join(WEIGHTS)}) or an instance of Weight, not {weight!r:.60}")
        self.integrates = self.weight.integrates
        self.uncertainty = Uncertainty() if uncertainty else None
        self.variance, self.steps, self.levels = variance, steps, levels

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if self.uncertainty is not None and self.integrates:
            raise InputError("weight=bound is what it is: with uncertainty=true it would be no bound")
        if denoiser.learns_variance:
            check_steps(denoiser, self.times)

    def loss(self, denoiser: Denoiser, estimate: Estimate, x0: Sample, target: Sample) -> Float[Tensor, " batch"]:
        level, c_out = estimate.level, denoiser.prediction.c_out(estimate.level)
        error = (estimate.output - target).square().flatten(1).mean(1)
        factor = self.weight(level, denoiser.prediction) * c_out.square()
        if self.integrates:
            factor = factor * (denoiser.t_max - denoiser.t_min)
        loss = along_batch(factor, error) * error
        if self.uncertainty is not None:
            u = self.uncertainty(level)
            loss = loss * torch.exp(-u) + u
        if estimate.variance_fraction is not None:
            steps = Steps.of(denoiser, level, self.steps)
            terms = bound_terms(steps, estimate.with_output(estimate.output.detach()), x0, target, c_out, self.levels)
            loss = loss + self.variance * steps.number / math.log(2) * terms
        return loss
