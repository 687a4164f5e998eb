"""The exact solution of the probability-flow ODE, with a polynomial in the place of the unknown.

From level t to level s, with lambda = log(alpha / sigma) and h = lambda_s - lambda_t, the solution is linear in x_t
plus an integral of what the network estimates (docs/mathematics.md section 4; Lu et al. 2022; Zhang & Chen 2023):

    data    x_s = (sigma_s / sigma_t) x_t + alpha_s  integral of e^(l - lambda_s) x0_hat(l) dl
    noise   x_s = (alpha_s / alpha_t) x_t - sigma_s  integral of e^(lambda_s - l) eps_hat(l) dl
    angle   x_s = (scale_s / scale_t) x_t + scale_s  integral of v_hat(u) / scale(u) du
            scale = sqrt(alpha^2 + sigma^2),  u = atan2(sigma, alpha)

A solver is a form, a variable in which the unknown is a polynomial, and the points which that polynomial goes through:
earlier levels (multistep), levels within the step (single-step), the level where the step ends (correctors).

The data and the noise form have a stochastic version for every eta >= 0, with the same marginals; its drift changes
with its noise (docs/mathematics.md section 4).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.prediction import Level
from undiffuse.schedule import Host, Schedule

# form -> the unknown, an attribute of `Estimate`
FORMS = {"data": "x0", "noise": "noise", "angle": "v"}

# what a polynomial may be a polynomial in -> its value at a log-SNR
VARIABLES: dict[str, Callable[[Schedule, Host], Host]] = {
    "lambda": lambda schedule, log_snr: log_snr / 2,
    "ratio": lambda schedule, log_snr: torch.exp(-log_snr / 2),  # sigma / alpha, the time of Karras et al. 2022
    "angle": lambda schedule, log_snr: torch.exp(-log_snr / 2).atan(),
    "time": lambda schedule, log_snr: schedule.time(log_snr),
}
# "index" is a variable too: points count as equally spaced wherever they are, as in PNDM (Liu et al. 2022)

_QUADRATURE = 32  # points; exact to rounding for steps of up to about 20 in lambda
_NODES, _WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(_QUADRATURE))

Points = Float64[Tensor, "terms *grid"]


def scale(level: Level) -> Host:
    """sqrt(alpha^2 + sigma^2), by which the angle's variable z = x / scale is scaled."""
    return torch.hypot(level.alpha, level.sigma)


@dataclass(frozen=True)
class Integral:
    """The integral in one of the `FORMS` over steps from times `t` to times `s`, of any one shape, float64 on the host.

    variable: a key of `VARIABLES`, or "index"; eta: 0 for the ODE.
    """

    schedule: Schedule
    t: Host
    s: Host
    form: str
    variable: str = "lambda"
    eta: float = 0.0

    @cached_property
    def now(self) -> Level:
        return Level(self.schedule, self.t)

    @cached_property
    def then(self) -> Level:
        return Level(self.schedule, self.s)

    @property
    def h(self) -> Host:
        """lambda_s - lambda_t."""
        return (self.then.log_snr - self.now.log_snr) / 2

    @property
    def of_x(self) -> Host:
        """The factor of x_t."""
        if self.form == "data":
            shrunk = self.then.sigma / self.now.sigma
            return shrunk * torch.exp(-(self.eta**2) * self.h) if self.eta else shrunk  # h may be infinite
        if self.form == "noise":
            return self.then.alpha / self.now.alpha
        return scale(self.then) / scale(self.now)

    @property
    def total(self) -> Host:
        """The integral where the unknown is 1 (for the angle: where v / scale is 1)."""
        if self.form == "data":
            between = -self.then.alpha * torch.expm1(-(1 + self.eta**2) * self.h)
            # rising to alpha_s = 0 the product reads 0 inf
            limit = self.then.alpha - self.then.sigma * self.now.alpha / self.now.sigma
            return torch.where(self.then.log_snr.isneginf(), limit, between)
        if self.form == "noise":
            return -(1 + self.eta**2) * self.then.sigma * torch.expm1(self.h)
        return scale(self.then) * (self._angle(self.then) - self._angle(self.now))

    @property
    def of_noise(self) -> Host:
        """The standard deviation of what the stochastic version adds."""
        if self.form == "data":
            return self.then.sigma * (-torch.expm1(-2 * self.eta**2 * self.h)).sqrt()
        return self.eta * self.then.sigma * torch.expm1(2 * self.h).sqrt()

    @staticmethod
    def _angle(level: Level) -> Host:
        return torch.atan2(level.sigma, level.alpha)

    def _value(self, level: Level) -> Host:
        return VARIABLES[self.variable](self.schedule, level.log_snr)

    def moments(self, count: int) -> Points:
        """Means of tau^p, p = 0..count-1, under the kernel; tau is the variable, from 0 at the start to 1 at the end.

        By Gauss-Legendre quadrature, because the closed forms (phi-functions) cancel at small h.
        """
        if self.variable == "index":
            powers = torch.arange(1, count + 1, dtype=torch.float64)
            return (1 / powers).reshape(-1, *[1] * self.t.ndim).expand(-1, *self.t.shape)
        column = [-1, *[1] * self.t.ndim]
        x, kernel = (1 + _NODES.reshape(column)) / 2, _WEIGHTS.reshape(column)
        if self.form == "angle":
            first, last = self._angle(self.now), self._angle(self.then)
            log_snr = -2 * torch.log(torch.tan(first + x * (last - first)))
        else:
            log_snr = self.now.log_snr + 2 * x * self.h
            rate = -(1 + self.eta**2) if self.form == "data" else 1.0
            kernel = kernel * torch.exp(rate * self.h * (1 - x))
        start, end = self._value(self.now), self._value(self.then)
        tau = (VARIABLES[self.variable](self.schedule, log_snr) - start) / (end - start)
        kernel = kernel / kernel.sum(0)
        return torch.stack([(kernel * tau**p).sum(0) for p in range(count)])

    def weights(self, nodes: Sequence[Host], adjust: Callable[[Points, "Integral"], Points] | None = None) -> Points:
        """w (points, ...) with integral = sum_j w_j f(nodes_j) for every polynomial f of that many coefficients.

        nodes: times; for "index" their numbers, 0 where the step starts, 1 where it ends. adjust: another choice of the
        moments, as published solvers make. Where a node's variable is infinite, the weights are nan.
        """
        count = len(nodes)
        if self.variable == "index":
            tau = torch.stack([torch.as_tensor(node, dtype=torch.float64).expand(self.t.shape) for node in nodes])
            levels = None
        else:
            levels = [Level(self.schedule, node) for node in nodes]
            start, end = self._value(self.now), self._value(self.then)
            tau = torch.stack([(self._value(level) - start) / (end - start) for level in levels])
        if count == 1:
            weights = self.total[None]
        else:
            moments = self.moments(count)
            moments = moments if adjust is None else adjust(moments, self)
            usable = (tau.isfinite().all(0) & moments.isfinite().all(0)).expand(self.t.shape)
            spread = torch.arange(count, dtype=torch.float64).reshape(-1, *[1] * self.t.ndim)
            powers = torch.stack([torch.where(usable, tau, spread) ** p for p in range(count)])
            known = torch.where(usable, moments, 0).movedim(0, -1)
            solved = torch.linalg.solve(powers.movedim((0, 1), (-2, -1)), known)
            weights = torch.where(usable, self.total * solved.movedim(-1, 0), math.nan)
        if self.form == "angle" and levels is not None:
            return weights / torch.stack([scale(level) for level in levels])
        return weights
