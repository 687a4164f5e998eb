"""Single-step solvers: the polynomial goes through estimates within the step, and nothing is remembered.

A method is a form and a variable (`Integral`), nodes (0 is the step's start and 1 its end in that variable), and for
each stage and for the end which of the earlier nodes the polynomial goes through:

    Euler             0             from {0}                        angle or ratio (over the ratio it is DDIM)
    Heun              0, 1          from {0, 1}                     angle or ratio (Karras et al. 2022, alg. 1)
    Midpoint          0, 1/2        from {1/2}
    DPM-Solver-2      0, 1/2        from {1/2}, exact: {0, 1/2}     lambda; noise or data (++): Lu et al. 2022a, 2022b
    DPM-Solver-3      0, 1/3, 2/3   from {0, 2/3}, exact: all
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.samplers.base import Grid
from undiffuse.samplers.integral import FORMS, VARIABLES, Integral
from undiffuse.samplers.linear import LinearSampler
from undiffuse.samplers.multistep import check_choice, check_eta
from undiffuse.schedule import Host, Schedule

_LOG_SNR_OF = {
    "lambda": lambda value: 2 * value,
    "ratio": lambda value: -2 * value.log(),
    "angle": lambda value: -2 * value.tan().log(),
}


@dataclass(frozen=True)
class SingleStep(LinearSampler):
    """What all of them share."""

    @property
    @abstractmethod
    def nodes(self) -> tuple[float, ...]:
        """Where the stages evaluate, from 0 up to 1."""

    @property
    @abstractmethod
    def through(self) -> tuple[tuple[int, ...], ...]:
        """For each stage after the first, and for the end, the nodes that its polynomial goes through."""

    form = "angle"
    variable = "angle"
    eta = 0.0

    @property
    def unknown(self) -> str:  # type: ignore[override]
        return FORMS[self.form]

    @property
    def stages(self) -> int:  # type: ignore[override]
        return len(self.nodes)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def clock(self, schedule: Schedule, t: Host) -> Host:
        return (self.eta**2 if self.form == "data" else -1) * schedule.log_snr(t)

    def _evaluated(self, schedule: Schedule, times: Grid) -> list[Host]:
        """The times (N, B) of the nodes; from or to infinite lambda, those within the step are its start."""
        t, s = times[:-1], times[1:]
        value = VARIABLES[self.variable]
        start, end = value(schedule, schedule.log_snr(t)), value(schedule, schedule.log_snr(s))
        found = []
        for node in self.nodes:
            within = schedule.time(_LOG_SNR_OF[self.variable](start + node * (end - start)))
            found.append(
                t if node == 0 else s if node == 1 else torch.where(start.isfinite() & end.isfinite(), within, t)
            )
        return found

    def levels(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps stages batch"]:
        found = self._evaluated(schedule, times)[1:]
        return torch.stack(found, 1) if found else super().levels(schedule, times)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        evaluated = self._evaluated(schedule, times)
        ends = [*evaluated[1:], times[1:]]
        # from or to infinite lambda there are no nodes within the step: its first order, with one evaluation
        value = VARIABLES[self.variable](schedule, schedule.log_snr(times))
        single = ~(value[:-1].isfinite() & value[1:].isfinite())
        parts: list[Tensor] = []
        for stage, (end, through) in enumerate(zip(ends, self.through, strict=True), start=1):
            integral = Integral(schedule, times[:-1], end, self.form, self.variable, self.eta)
            weights = [torch.zeros_like(end)] * stage
            for node, weight in zip(through, integral.weights([evaluated[node] for node in through]), strict=True):
                weights[node] = weight
            first_order = [integral.total, *[torch.zeros_like(end)] * (stage - 1)]
            row = [integral.of_x, *(torch.where(single, a, b) for a, b in zip(first_order, weights, strict=True))]
            if self.stochastic:
                row += self._noise_rows(schedule, [*evaluated[:stage], end], integral)
            parts += row if stage == self.stages else [torch.where(single, 0, c) for c in row]
        return torch.stack(parts, 1)

    def _noise_rows(self, schedule: Schedule, levels: list[Host], integral: Integral) -> list[Tensor]:
        """The noise from the start to the last of `levels` as that of the ways between them, in one Brownian path."""
        clock = torch.stack([self.clock(schedule, level) for level in levels])
        passed = (clock[1:].exp() - clock[:-1].exp()).abs()
        share = (passed / passed.sum(0)).nan_to_num(1 / len(passed)).sqrt()
        return list(integral.of_noise * share)


@dataclass(frozen=True)
class _RungeKutta(SingleStep):
    variable: Literal["angle", "ratio"] = "angle"

    def __post_init__(self) -> None:
        check_choice(f"the variable of {type(self).__name__}", self.variable, ("angle", "ratio"))

    @property
    def form(self) -> str:  # type: ignore[override]
        return "angle" if self.variable == "angle" else "noise"


@dataclass(frozen=True)
class Euler(_RungeKutta):
    """z_s = z_t + (u_s - u_t) dz/du over the angle, or over sigma / alpha ("ratio"), where it is DDIM."""

    nodes = (0.0,)
    through = ((0,),)


@dataclass(frozen=True)
class Heun(_RungeKutta):
    """The trapezoidal rule with an Euler predictor; over the "ratio" it is the solver of Karras et al. (2022)."""

    nodes = (0.0, 1.0)
    through = ((0,), (0, 1))
    order = 2


@dataclass(frozen=True)
class Midpoint(_RungeKutta):
    """The slope in the middle of the step, half way in the variable."""

    nodes = (0.0, 0.5)
    through = ((0,), (1,))
    order = 2


@dataclass(frozen=True)
class DPMSolverPlusPlusSingle(SingleStep):
    """DPM-Solver++ in single steps, 2S and 3S: two or three evaluations, at equal parts of the step in lambda.

    weights: "published" (their "dpmsolver" type) or "exact" (their "taylor" type, the polynomial through all nodes);
    eta: 1 is the SDE version of order 2 (k-diffusion's DPM++ SDE).
    """

    order: int = 2
    weights: Literal["published", "exact"] = "published"
    eta: float = 0.0
    brownian: bool = False
    form = "data"
    variable = "lambda"

    def __post_init__(self) -> None:
        check_choice("the order of single-step DPM-Solver", self.order, (2, 3))
        check_choice("weights of single-step DPM-Solver", self.weights, ("published", "exact"))
        check_eta(self.eta)
        if self.eta and self.order == 3:
            raise InputError(f"single-step DPM-Solver draws noise at order 2 only: eta = {self.eta} with order 3")

    @property
    def convergence_order(self) -> int:
        return 1 if self.eta else self.order

    @property
    def nodes(self) -> tuple[float, ...]:
        return (0.0, 0.5) if self.order == 2 else (0.0, 1 / 3, 2 / 3)

    @property
    def through(self) -> tuple[tuple[int, ...], ...]:
        published = self.weights == "published"
        if self.order == 2:
            return ((0,), (1,) if published else (0, 1))
        return ((0,), (0, 1), (0, 2) if published else (0, 1, 2))


@dataclass(frozen=True)
class DPMSolverSingle(DPMSolverPlusPlusSingle):
    """DPM-Solver-2 (also known as DPM2 and KDPM2) and DPM-Solver-3: the noise for the unknown."""

    form = "noise"
