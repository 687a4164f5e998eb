"""Multistep solvers: the polynomial goes through the estimates at this level and at earlier ones.

One evaluation a step. The first steps have fewer points, and a level where the polynomial's variable is infinite is no
point; so they are of lower order. Coefficients are those of `Integral`, for a form, a variable and an order:

    DPM-Solver++ multistep      data,  lambda     Lu et al. 2022b; eta = 1: its SDE version
    DPM-Solver multistep        noise, lambda     Lu et al. 2022a
    DEIS                        noise, time, ratio or lambda       Zhang & Chen 2023
    LMS                         noise, ratio      Adams-Bashforth in the time of Karras et al. 2022
    Adams                       angle, angle      Adams-Bashforth(-Moulton) in a variable that is smooth at both ends
    UniPC                       data or noise, lambda, corrected   Zhao et al. 2023
    iPNDM                       noise, index      Zhang & Chen 2023, after PNDM (Liu et al. 2022)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError, unknown
from undiffuse.samplers.base import Grid
from undiffuse.samplers.integral import FORMS, Integral, Points
from undiffuse.samplers.linear import LinearSampler
from undiffuse.schedule import Host, Schedule


def midpoint(moments: Points, integral: Integral) -> Points:
    """Order 2: the polynomial's value in the middle of the step (DPM-Solver(++) 2M, UniPC with bh2)."""
    return torch.stack([moments[0], torch.full_like(moments[1], 0.5)]) if len(moments) == 2 else moments


def published(moments: Points, integral: Integral) -> Points:
    """`midpoint`, and half of the second difference at order 3, which leaves it second order (DPM-Solver(++) 3M)."""
    return torch.stack([*moments[:2], moments[2] / 2]) if len(moments) == 3 else midpoint(moments, integral)


def bh1(moments: Points, integral: Integral) -> Points:
    """Order 2 by B(h) = h (UniPC, eq. 9 and its simplification for two points)."""
    if len(moments) != 2:
        return moments
    level = integral.then
    flat = (level.alpha if integral.form == "data" else -level.sigma) * integral.h
    return torch.stack([moments[0], 0.5 * flat / integral.total])


ADJUSTMENTS: dict[str, Callable[[Points, Integral], Points] | None] = {
    "exact": None,
    "midpoint": midpoint,
    "published": published,
    "bh1": bh1,
    "bh2": midpoint,
}


def check_choice(what: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises: InputError unless `value` is among `allowed`."""
    if value in allowed and not isinstance(value, bool):
        return
    if isinstance(value, str):
        raise unknown(what.removeprefix("the "), value, [str(a) for a in allowed if a is not None])
    raise InputError(f"{what} must be one of {', '.join(map(str, allowed))}, not {value}")


@dataclass(frozen=True)
class Multistep(LinearSampler):
    """What all of them share: the order, which is how many points the polynomial goes through, and an `Integral`."""

    form = "data"
    variable = "lambda"
    adjustment = "exact"
    eta = 0.0

    @property
    def unknown(self) -> str:  # type: ignore[override]
        return FORMS[self.form]

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    @property
    def convergence_order(self) -> int:
        return self.order + self.corrects  # the corrector goes through one point more

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.order if self.corrects else self.order - 1

    def clock(self, schedule: Schedule, t: Host) -> Host:
        return (self.eta**2 if self.form == "data" else -1) * schedule.log_snr(t)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        integral = self._integral(schedule, times[:-1], times[1:])
        of_f = self._weights(schedule, times, ahead=0)
        rows = [integral.of_x[:, None], of_f]
        if self.corrects:
            rows.append(torch.zeros_like(of_f[:, :1]))  # a point more is kept than the prediction uses
        if self.stochastic:
            rows.append(integral.of_noise[:, None])
        return torch.cat([*([self._correction(schedule, times)] if self.corrects else []), *rows], 1)

    def _integral(self, schedule: Schedule, t: Host, s: Host) -> Integral:
        return Integral(schedule, t, s, self.form, self.variable, self.eta)

    def _weights(self, schedule: Schedule, times: Grid, ahead: int) -> Float64[Tensor, "steps terms batch"]:
        """Weights of the estimates at `ahead` levels after the step's start, at its start, and before; for every step.

        Each step uses as many points as there are, so the first ones fewer.
        """
        count, most = len(times) - 1, self.order + ahead
        weights = torch.zeros(count, most, times.shape[1], dtype=torch.float64)
        for points in range(1 + ahead, min(most, count + ahead) + 1):
            first = points - 1 - ahead  # the first step that can look back so far
            integral = self._integral(schedule, times[first:-1], times[first + 1 :])
            offsets = [ahead - j for j in range(points)]
            nodes = [times[first + o : len(times) - 1 + o] for o in offsets]
            if self.variable == "index":
                nodes = [torch.full_like(integral.t, o) for o in offsets]
            found = integral.weights(nodes, ADJUSTMENTS[self.adjustment]).movedim(0, 1)
            weights[first:, :points] = torch.where(found.isnan(), weights[first:, :points], found)
        return weights

    def _correction(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        """Rows that step to each level once more, now that the estimate there is known; the first level is left alone.

        Of x, of the corrected x before, of the estimate here, and of the earlier ones.
        """
        rows = torch.zeros(len(times) - 1, 3 + self.memory, times.shape[1], dtype=torch.float64)
        rows[0, 0] = 1
        if len(rows) == 1:
            return rows
        weights = self._weights(schedule, times[:-1], ahead=1)
        integral = self._integral(schedule, times[:-2], times[1:-1])
        known = weights.isfinite().all(1) & integral.of_x.isfinite() & (weights[:, 0] != 0)
        rows[1:, 0] = (~known).double()
        rows[1:, 1] = torch.where(known, integral.of_x, 0)
        rows[1:, 2:] = torch.where(known[:, None], weights, 0)
        return rows


@dataclass(frozen=True)
class DPMSolverPlusPlus(Multistep):
    """DPM-Solver++ multistep: orders 1 (DDIM), 2 (2M) and 3 (3M), and their SDE versions.

    order: 1 to 3; weights: "published", which at order 2 takes the middle of the step, or "exact"; by default published
    at order 2, else exact (the published third order has half of the second difference: second order);
    eta: 0 is the ODE, 1 the reverse SDE (at order 1 ancestral sampling with beta-tilde), for others not DDIM's eta.
    """

    order: int = 2
    weights: Literal["exact", "published"] | None = None
    eta: float = 0.0
    brownian: bool = False

    def __post_init__(self) -> None:
        check_choice("the order of DPM-Solver++", self.order, (1, 2, 3))
        check_choice("weights of DPM-Solver++", self.weights, (None, "exact", "published"))
        check_eta(self.eta)

    @property
    def adjustment(self) -> str:  # type: ignore[override]
        return self.weights or ("published" if self.order == 2 else "exact")

    @property
    def convergence_order(self) -> int:
        if self.eta:
            return 1
        return min(self.order, 2) if self.adjustment == "published" else self.order


@dataclass(frozen=True)
class DPMSolver(DPMSolverPlusPlus):
    """DPM-Solver multistep: as `DPMSolverPlusPlus`, with the noise for the unknown; cannot start at alpha = 0."""

    form = "noise"


@dataclass(frozen=True)
class DEIS(Multistep):
    """Diffusion exponential integrator sampler (tAB-DEIS): the noise is a polynomial in a variable.

    order: 1 to 4, the paper's 0 to 3 plus one; variable: "time", "ratio" (their rho), "lambda" or "angle".
    """

    order: int = 3
    variable: Literal["time", "ratio", "lambda", "angle"] = "time"
    form = "noise"

    def __post_init__(self) -> None:
        check_choice("the order of DEIS", self.order, (1, 2, 3, 4))
        check_choice("the variable of DEIS", self.variable, ("time", "ratio", "lambda", "angle"))


@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep (Adams-Bashforth) over sigma / alpha with its real spacing: k-diffusion's LMS. order: 1 to 4."""

    order: int = 4
    form = "noise"
    variable = "ratio"

    def __post_init__(self) -> None:
        check_choice("the order of LMS", self.order, (1, 2, 3, 4))


@dataclass(frozen=True)
class Adams(Multistep):
    """Adams-Bashforth over the angle, in which the ODE is smooth and finite at both ends, whatever the schedule.

    order: 1 to 4; corrector: Adams-Moulton with the evaluation that the next step makes anyway, one order higher.
    """

    order: int = 2
    corrector: bool = False
    form = "angle"
    variable = "angle"

    def __post_init__(self) -> None:
        check_choice("the order of Adams", self.order, (1, 2, 3, 4))

    @property
    def corrects(self) -> bool:  # type: ignore[override]
        return self.corrector


@dataclass(frozen=True)
class UniPC(Multistep):
    """Unified predictor-corrector: `order` points in the predictor, one more in the corrector.

    order: of the predictor, 1 to 3; the corrector adds one. weights: "exact", or the published "bh1" and "bh2", which
    differ from it (and from each other) only where there are two points. form: "data" or "noise". corrector: off leaves
    the predictor. variable: of the polynomial, the published "lambda"; "ratio"; or "index", which takes the levels as
    equally spaced (then second order at most, and the least error of all with few steps: docs/samplers.md).
    """

    order: int = 2
    weights: Literal["exact", "bh1", "bh2"] = "bh2"
    form: Literal["data", "noise"] = "data"
    corrector: bool = True
    variable: Literal["lambda", "ratio", "index"] = "lambda"

    def __post_init__(self) -> None:
        check_choice("the order of UniPC", self.order, (1, 2, 3))
        check_choice("weights of UniPC", self.weights, ("exact", "bh1", "bh2"))
        check_choice("the form of UniPC", self.form, ("data", "noise"))
        check_choice("the variable of UniPC", self.variable, ("lambda", "ratio", "index"))

    @property
    def convergence_order(self) -> int:
        order = self.order + self.corrects
        return min(order, 2) if self.variable == "index" else order

    @property
    def adjustment(self) -> str:  # type: ignore[override]
        return self.weights if self.variable == "lambda" else "exact"  # the published ones are for lambda

    @property
    def corrects(self) -> bool:  # type: ignore[override]
        return self.corrector


@dataclass(frozen=True)
class IPNDM(Multistep):
    """Improved PNDM: Adams-Bashforth on the noise as if levels were equally spaced, with lower orders at the start.

    order: 1 to 4, the number of points. The equal spacing is a fiction: from two points on the error is second order.
    """

    order: int = 4
    form = "noise"
    variable = "index"

    def __post_init__(self) -> None:
        check_choice("the order of iPNDM", self.order, (1, 2, 3, 4))

    @property
    def convergence_order(self) -> int:
        return min(self.order, 2)


def check_eta(eta: float) -> None:
    """Raises: InputError unless eta is in [0, 10]."""
    if not 0 <= eta <= 10:
        raise InputError(f"eta must be in [0, 10], not {eta}")
