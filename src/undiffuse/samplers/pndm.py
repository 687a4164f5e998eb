"""Pseudo numerical methods (Liu et al. 2022): classical formulas on the noise, with DDIM's step in place of Euler's."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.samplers.base import Grid
from undiffuse.samplers.integral import Integral
from undiffuse.samplers.linear import LinearSampler
from undiffuse.samplers.multistep import IPNDM, check_choice
from undiffuse.schedule import Schedule

# start -> by stage: the node (in time) where it ends, and the weights of the evaluations so far
STARTS: dict[str, tuple[tuple[float, tuple[float, ...]], ...]] = {
    "runge-kutta": ((0.5, (1,)), (0.5, (0, 1)), (1, (0, 0, 1)), (1, (1 / 6, 1 / 3, 1 / 3, 1 / 6))),
    "heun": ((1, (1,)), (1, (1 / 2, 1 / 2))),
}


@dataclass(frozen=True)
class PNDM(LinearSampler):
    """Four-point Adams-Bashforth as if levels were equally spaced, after a start of several evaluations a step.

    start: "runge-kutta", four evaluations in each of the first three steps (F-PNDM); or "heun", two in the first, then
    formulas of fewer points: the PLMS of Stable Diffusion. As a whole it is of second order.
    """

    start: Literal["runge-kutta", "heun"] = "heun"
    unknown = "noise"
    memory = 3
    order = 4

    def __post_init__(self) -> None:
        check_choice("the start of PNDM", self.start, tuple(STARTS))

    @property
    def stages(self) -> int:  # type: ignore[override]
        return len(STARTS[self.start])

    @property
    def convergence_order(self) -> int:
        return 2

    @property
    def _starting(self) -> int:
        return 3 if self.start == "runge-kutta" else 1

    def evaluations(self, steps: int) -> int:
        return steps + min(self._starting, steps - 1) * (self.stages - 1)

    def levels(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps stages batch"]:
        t, s = times[:-1], times[1:]
        found = torch.stack([s if node == 1 else t + node * (s - t) for node, _ in STARTS[self.start][:-1]], 1)
        starting = torch.arange(len(t)) < self._starting
        return torch.where(starting[:, None, None], found, t[:, None])

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        t, s = times[:-1], times[1:]
        after = IPNDM(4).rows(schedule, times)  # of x, f_0, and three earlier ones
        starting = (torch.arange(len(t)) < self._starting)[:, None]
        none = torch.zeros_like(t)
        parts = []
        for stage, (node, weights) in enumerate(STARTS[self.start], start=1):
            last = stage == self.stages
            integral = Integral(schedule, t, torch.where(starting & (node < 1), t + node * (s - t), s), "noise")
            then = [after[:, 0], after[:, 1], *[none] * (stage - 1), *after[:, 2:].unbind(1)]
            if not last:
                then = [none] * len(then)
            first = [integral.of_x, *(w * integral.total for w in weights), *[none] * self.memory]
            parts += [torch.where(starting, a, b) for a, b in zip(first, then, strict=True)]
        return torch.stack(parts, 1)
