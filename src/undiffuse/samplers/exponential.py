"""Exponential integrators over lambda = log(alpha / sigma): the DPM-Solver++ family (Lu et al. 2022).

The exact solution of the probability-flow ODE from lambda_t to lambda_s, in the data form, is

    x_s = (sigma_s / sigma_t) x_t + sigma_s  integral of e^l x0_hat(l) dl

and a solver of order p puts the polynomial through the last p estimates in the place of x0_hat(l).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError, unknown
from undiffuse.samplers.base import Grid, LinearSampler
from undiffuse.schedule import Schedule

WEIGHTS = ("exact", "midpoint")


def moments(h: Tensor, count: int) -> list[Tensor]:
    """I_p = integral over [0, h] of e^(tau - h) tau^p, p = 0..count-1, by parts: I_p = h^p - p I_(p-1)."""
    values = [-torch.expm1(-h)]
    for p in range(1, count):
        values.append(h**p - p * values[-1])
    return values


def polynomial_weights(nodes: Tensor, h: Tensor) -> Tensor:
    """w (points, B) with  sum_j w_j f(nodes_j) = integral of e^(tau - h) f(tau) over [0, h]  for polynomials f.

    nodes: (points, B), times before the step's start at 0; h: (B,), the step.
    """
    points = len(nodes)
    powers = torch.stack([nodes**p for p in range(points)])  # (power, point, B)
    return torch.linalg.solve(powers.movedim(-1, 0), torch.stack(moments(h, points), -1)).T


@dataclass(frozen=True)
class DPMSolverPlusPlus(LinearSampler):
    """DPM-Solver++ multistep: orders 1 (DDIM), 2 (2M) and 3 (3M).

    weights: "midpoint" is the published 2M (order 2 only), which integrates the constant exactly and takes the slope at
    the middle of the step; "exact" integrates the polynomial exactly. By default midpoint at order 2, else exact.
    The first steps have fewer points, and a level with infinite lambda is no point; so they are of lower order.
    """

    order: int = 2
    weights: Literal["exact", "midpoint"] | None = None

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"the order of DPM-Solver++ must be 1, 2 or 3, not {self.order}")
        if self.weights not in (None, *WEIGHTS):
            raise unknown("weights of DPM-Solver++", self.weights, WEIGHTS)
        if self.weights == "midpoint" and self.order != 2:
            raise InputError(f"the midpoint weights exist for order 2, not {self.order}")

    @property
    def memory(self) -> int:
        return self.order - 1

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        levels = schedule.half_log_snr(times)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        midpoint = self.order == 2 and self.weights != "exact"
        rows = torch.zeros(len(times) - 1, self.order + 2, times.shape[1], dtype=torch.float64)
        for k in range(len(times) - 1):
            h = levels[k + 1] - levels[k]
            rows[k, 0] = sigma[k + 1] / sigma[k]
            rows[k, 1] = -alpha[k + 1] * torch.expm1(-h)
            for points in range(2, min(self.order, k + 1) + 1):
                nodes = torch.stack([levels[k - j] - levels[k] for j in range(points)])
                usable = nodes.isfinite().all(0) & h.isfinite()
                nodes, step = torch.where(usable, nodes, -torch.arange(points)[:, None]), torch.where(usable, h, 1)
                if midpoint:
                    slope = step / (2 * nodes[1])
                    weights = -torch.expm1(-step) * torch.stack([1 - slope, slope])
                else:
                    weights = polynomial_weights(nodes, step)
                rows[k, 1 : 1 + points] = torch.where(usable, alpha[k + 1] * weights, rows[k, 1 : 1 + points])
        return rows
