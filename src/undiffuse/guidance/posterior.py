"""Sampling what agrees with a linear measurement y = A x_0 + n of it (Song et al. 2023; Boys et al. 2023)."""

import math
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import Guidance, Scale, detached, moved, scale_of, tilted
from undiffuse.guidance.measurement import Linear, check_measured, least_squares, rows_of
from undiffuse.prediction import Level
from undiffuse.schedule import Time, along_batch, host

Covariance = Literal["network", "isotropic"]


class Posterior(Guidance):
    """The estimate given y = A x_0 + n, n ~ N(0, noise_std^2), with p(x_0 | x_t) taken for N(x0_hat, v).

        v = sigma^2 sd^2 / (sigma^2 + alpha^2 sd^2),    p(y | x_t) ~ N(A x0_hat, noise_std^2 + v A A^T)
        change = v A^T (noise_std^2 + v A A^T)^-1 (y - A x0_hat)

    covariance: what carries the change from x_0 to the estimate.
        "isotropic": x0~ = x0_hat + scale change. No gradient: one evaluation of the network costs one.
        "network": grad_x_t log p(y | x_t) = J^T change / v for J = d x0_hat / d x_t, through the network, so that
        pixels that were not measured follow those that were; an evaluation costs about three. Where alpha = 0 the
        estimate stays as it is.
    (sigma^2 / alpha) J is the covariance of x_0 given x_t (Tweedie's second order), so the two are one where it is v;
    both are exact for data of N(mean, sd^2).

    measure: A, a `Measurement` or any linear callable (B, ...) -> (B, ...), with `rows(index)` where it holds something
    per sample; its adjoint comes from automatic differentiation. y: (B, ...), or (1, ...) for all. noise_std: of n, in
    the units of y; 0 asks that A x_0 = y. scale: of the change, 0 for none. noise_std and scale: a number, or one per
    sample. data_std: sd, by default the denoiser's. iterations: conjugate gradients for the inverse; masks and averages
    need 1, a blur takes more the smaller noise_std / sqrt(v) is.

    Raises: InputError for numbers out of these ranges, and when called with samples that y does not fit.

    Sources: the Gaussian with v and the gradient through the network, PiGDM (Song et al. 2023, eq. 7 and 8); the
    covariance by Tweedie, Boys et al. 2023; without a gradient, and for noise_std = 0, DDNM (Wang et al. 2023), with
    noise the proximal step of DiffPIR (Zhu et al. 2023).
    """

    held = ("scale", "noise_std", "y")

    def __init__(
        self,
        denoiser: BaseDenoiser,
        measure: Linear,
        y: Float[Tensor, "..."],
        noise_std: Scale = 0.0,
        scale: Scale = 1.0,
        *,
        covariance: Covariance = "network",
        data_std: float | None = None,
        iterations: int = 20,
    ) -> None:
        super().__init__(denoiser)
        if covariance not in get_args(Covariance):
            raise InputError(f"covariance must be {' or '.join(get_args(Covariance))}, not {covariance!r}")
        if not bool(y.isfinite().all()):
            raise InputError("y must be finite, but some of what was measured is NaN or infinite")
        self.data_std = denoiser.data_std if data_std is None else data_std
        if not (math.isfinite(self.data_std) and self.data_std > 0):
            raise InputError(f"data_std must be finite and above 0, not {self.data_std}")
        if iterations < 1:
            raise InputError(f"iterations must be 1 or more, not {iterations}")
        self.noise_std = host(noise_std)
        if self.noise_std.ndim > 1 or not bool((self.noise_std.isfinite() & (self.noise_std >= 0)).all()):
            raise InputError(
                f"noise_std must be finite and 0 or above, not {self.noise_std.tolist()}: a number, or one per sample"
            )
        self.measure, self.y, self.scale = measure, y, scale_of(scale, "posterior's")
        self.covariance, self.iterations = covariance, iterations

    def variance(self, level: Level) -> Float64[Tensor, "..."]:
        """v, that of x_0 given x_t for data of variance sd^2."""
        noise, signal = level.sigma.square(), (level.alpha * self.data_std).square()
        return noise * self.data_std**2 / (noise + signal)

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        if not bool(self.scale.any()):
            plain = self.plain(x_t, t, condition)
            return plain, plain
        check_measured(self.y, self.measure(x_t))
        if self.covariance == "isotropic":
            plain = self.plain(x_t, t, condition)
            change = self._change(plain.x0, plain.level)
            return plain, moved(plain, along_batch(self.scale.expand(len(x_t)), change) * change)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            estimate = self.plain(x, t, condition)
            x0 = estimate.x0
            change = self._change(x0.detach(), estimate.level)
            (gradient,) = torch.autograd.grad(x0, x, change)
        plain = detached(estimate)
        return plain, tilted(plain, gradient, self.scale / self.variance(plain.level))

    @torch.no_grad()
    def _change(self, x0: Sample, level: Level) -> Sample:
        """v A^T (noise_std^2 + v A A^T)^-1 (y - A x0_hat)."""
        missing = self.y.to(x0) - self.measure(x0)
        ridge = self.noise_std.square() / self.variance(level)
        return least_squares(self.measure, missing, x0, ridge, self.iterations)

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return cast(Estimate, self.denoiser(x_t, t, condition))

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Posterior":
        chosen = cast(Posterior, super().rows(index))
        chosen.measure = rows_of(self.measure, index)
        return chosen
