"""Runge-Kutta methods on the probability-flow ODE: Euler and Heun.

The ODE is integrated in a scaled variable z = x / scale over a variable u in which it is smooth, never over table time,
whose kinks cost Heun its second order (docs/mathematics.md section 4):

    angle   z = x / sqrt(alpha^2 + sigma^2),  u = atan2(sigma, alpha):   dz/du = cos(u) eps_hat - sin(u) x0_hat
    ratio   z = x / alpha,                    u = sigma / alpha:         dz/du = eps_hat         (Karras et al. 2022)

In both, dz/du = p z - q x0_hat with p, q functions of the level alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError, unknown
from undiffuse.noise import NoiseSource
from undiffuse.samplers.base import Grid, LinearSampler, PerSample, Sampler, State
from undiffuse.schedule import Schedule, along_batch

VARIABLES = ("angle", "ratio")


def scaled_ode(schedule: Schedule, times: Grid, variable: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(u, scale, p, q) of dz/du = p z - q x0_hat, at every point of the grid."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    if variable == "ratio":
        ratio = sigma / alpha
        return ratio, alpha, 1 / ratio, 1 / ratio
    angle = torch.atan2(sigma, alpha)
    return angle, torch.hypot(alpha, sigma), alpha / sigma, 1 / torch.sin(angle)


@dataclass(frozen=True)
class Euler(LinearSampler):
    """z_s = z_t + (u_s - u_t) dz/du. Over the ratio this is DDIM."""

    variable: Literal["angle", "ratio"] = "angle"
    order = 1

    def __post_init__(self) -> None:
        if self.variable not in VARIABLES:
            raise unknown("variable of Euler", self.variable, VARIABLES)

    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        u, scale, p, q = scaled_ode(schedule, times, self.variable)
        du = u[1:] - u[:-1]
        of_x = scale[1:] / scale[:-1] * (1 + du * p[:-1])
        of_x0 = -scale[1:] * du * q[:-1]
        return torch.stack([of_x, of_x0, torch.zeros_like(of_x)], 1)


@dataclass(frozen=True)
class Heun(Sampler):
    """The trapezoidal rule with an Euler predictor: two evaluations a step, second order.

    The step into sigma = 0 is x_s = alpha_s x0_hat, with one evaluation (Karras et al. 2022, alg. 1).
    """

    variable: Literal["angle", "ratio"] = "angle"
    order = 2
    evaluations: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.variable not in VARIABLES:
            raise unknown("variable of Heun", self.variable, VARIABLES)

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        """Rows: the prediction's x, x0_hat; then the result's x, x0_hat, prediction, x0_hat at the prediction."""
        predict_x, predict_x0, _ = Euler(self.variable).coefficients(schedule, times).unbind(1)
        u, scale, p, q = scaled_ode(schedule, times, self.variable)
        half = (u[1:] - u[:-1]) / 2
        rows = torch.stack(
            [
                predict_x,
                predict_x0,
                scale[1:] / scale[:-1] * (1 + half * p[:-1]),
                -scale[1:] * half * q[:-1],
                half * p[1:],
                -scale[1:] * half * q[1:],
            ],
            1,
        )
        zero = torch.zeros_like(predict_x)
        landing = torch.stack([predict_x, predict_x0, predict_x, predict_x0, zero, zero], 1)
        return torch.where((schedule.sigma(times[1:]) == 0)[:, None], landing, rows)

    def init(self, denoiser: BaseDenoiser, x: Sample, times: Grid) -> State:
        if bool(((times > 0) & (times < denoiser.t_min * (1 - 1e-6))).any()):
            raise InputError(f"{self!r} calls the denoiser where a step ends: at 0, or from {denoiser.t_min:.6g} on")
        return super().init(denoiser, x, times)

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        predict_x, predict_x0, c_x, c_x0, c_predicted, c_x0_after = (along_batch(c, x) for c in state.now())
        x0 = denoiser(x, t).x0
        predicted = predict_x * x + predict_x0 * x0
        if not bool(s.any()):
            return predicted, state.after()
        # a sample that lands at 0 while others do not is evaluated where the network may be called, with weight 0
        x0_after = denoiser(predicted, s.clamp(min=denoiser.t_min)).x0
        return c_x * x + c_x0 * x0 + c_predicted * predicted + c_x0_after * x0_after, state.after()
