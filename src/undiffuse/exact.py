"""Closed-form denoisers: ground truth for tests, documentation and teaching.

For data that is a Gaussian, a mixture of Gaussians or a finite set of points, E[x_0 | x_t], the score and log p(x_t)
are known exactly at every time, and so is the solution of the probability-flow ODE, up to tight integration.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.prediction import Level
from undiffuse.schedule import Schedule, Time, along_batch, host


class _Exact(BaseDenoiser):
    """Denoisers of samples of any shape, whose data has the given dimension when flattened."""

    def __init__(self, schedule: Schedule, t_min: float | None, t_max: float, data_std: float) -> None:
        super().__init__()
        self.schedule, self.t_max, self.data_std = schedule, t_max, data_std
        self.t_min = schedule.finest_time if t_min is None else t_min

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        if condition:
            raise InputError(f"an exact denoiser is unconditional, but was given {', '.join(condition)}")
        return {}

    def _level(self, x: Tensor, t: Time) -> Level:
        """Exact at every time in (0, 1], so not held to [t_min, t_max]."""
        return Level(self.schedule, host(t).expand(len(x)))


class Mixture(_Exact):
    """Data from a mixture of K Gaussians in D dimensions: p(x_t) is the mixture of N(alpha m_k, alpha^2 C_k + sigma^2).

    weights (K,), means (K, D), covariances (K, D, D), positive semi-definite, or (K, D), their diagonals where they
    are diagonal: then thousands of dimensions are cheap; float64. Samples may have any shape of D elements.
    """

    def __init__(
        self,
        schedule: Schedule,
        weights: Float[Tensor, " components"],
        means: Float[Tensor, "components dim"],
        covariances: Float[Tensor, "components dim dim"] | Float[Tensor, "components dim"],
        t_min: float | None = None,
        t_max: float = 1.0,
    ) -> None:
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        weights = weights / weights.sum()
        # the eigenvectors of a diagonal covariance are the axes, and are left out
        eigenvalues, vectors = (covariances, None) if covariances.ndim == 2 else torch.linalg.eigh(covariances)
        if float(eigenvalues.min()) < -1e-9 * float(eigenvalues.max().clamp(min=1)):
            raise InputError(
                f"covariances must be positive semi-definite; one has eigenvalue {float(eigenvalues.min()):.3g}"
            )
        centre = weights @ means
        variances = covariances if vectors is None else covariances.diagonal(dim1=1, dim2=2)
        spread = (weights[:, None] * ((means - centre).square() + variances)).sum(0)
        super().__init__(schedule, t_min, t_max, math.sqrt(float(spread.mean())))
        self.log_weights, self.means = weights.log(), means
        self.eigenvalues, self.vectors = eigenvalues.clamp(min=0), vectors

    def _along_vectors(self, x: Tensor) -> Tensor:
        """Coordinates (B, K, D) of x (B, K, D) along each component's eigenvectors."""
        return x if self.vectors is None else torch.einsum("bkd,kde->bke", x, self.vectors.to(x))

    def _from_vectors(self, coordinates: Tensor) -> Tensor:
        """The inverse of `_along_vectors`."""
        return (
            coordinates
            if self.vectors is None
            else torch.einsum("bke,kde->bkd", coordinates, self.vectors.to(coordinates))
        )

    def _components(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates (B, K, D) of x - alpha m_k along the eigenvectors, variances, log joint densities (B, K)."""
        flat = x.flatten(1)
        # one device and dtype throughout: the samples'
        log_weights, means, eigenvalues = (v.to(flat) for v in (self.log_weights, self.means, self.eigenvalues))
        alpha, sigma = along_batch(level.alpha, means[None]), along_batch(level.sigma, means[None])
        coordinates = self._along_vectors(flat[:, None] - alpha * means)
        variances = alpha.square() * eigenvalues + sigma.square()
        log_density = -0.5 * (coordinates.square() / variances + (2 * math.pi * variances).log()).sum(-1)
        return coordinates, variances, log_weights + log_density

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        level = self._level(x_t, t)
        coordinates, variances, log_joint = self._components(x_t, level)
        alpha = along_batch(level.alpha, coordinates)
        shrunk = alpha * self.eigenvalues.to(coordinates) / variances * coordinates
        means = self.means.to(coordinates) + self._from_vectors(shrunk)
        x0 = (log_joint.softmax(1)[..., None] * means).sum(1).reshape(x_t.shape)
        return Estimate.of_x0(x_t, x0, level)

    def log_prob(self, x: Sample, t: Time = 0.0) -> Float[Tensor, " batch"]:
        """log p(x_t) at time t, in nats."""
        return self._components(x, self._level(x, t))[2].logsumexp(1)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count dim"]:
        """Samples of the data, float64."""
        component = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        deviation = self.eigenvalues[component].sqrt() * z
        if self.vectors is not None:
            deviation = torch.einsum("bde,be->bd", self.vectors[component], deviation)
        return self.means[component] + deviation


class Gaussian(Mixture):
    """Data from N(mean, covariance), of any covariance: (D, D), or (D,) where it is diagonal."""

    def __init__(
        self,
        schedule: Schedule,
        mean: Float[Tensor, " dim"],
        covariance: Float[Tensor, "dim dim"] | Float[Tensor, " dim"],
        t_min: float | None = None,
        t_max: float = 1.0,
    ) -> None:
        mean, covariance = torch.as_tensor(mean), torch.as_tensor(covariance)
        super().__init__(schedule, torch.ones(1), mean[None], covariance[None], t_min, t_max)

    def transport(self, x: Sample, t: Time, s: Time) -> Sample:
        """The exact solution at time s of the probability-flow ODE that passes through x at time t.

        Along each eigenvector the deviation from the mean scales with sqrt(alpha^2 e + sigma^2).
        """
        now, then = self._level(x, t), self._level(x, s)
        coordinates, variances, _ = self._components(x, now)
        after = (
            along_batch(then.alpha, variances).square() * self.eigenvalues.to(x)
            + along_batch(then.sigma, variances).square()
        )
        moved = self._from_vectors(coordinates * (after / variances).sqrt())[:, 0]
        return (along_batch(then.alpha, moved) * self.means[0].to(x) + moved).reshape(x.shape)


class FiniteData(_Exact):
    """Data that is one of N points with equal probability: what a network that memorises its training set would learn.

    points: (N, ...), any shape.
    """

    def __init__(
        self, schedule: Schedule, points: Float[Tensor, "points ..."], t_min: float | None = None, t_max: float = 1.0
    ) -> None:
        super().__init__(schedule, t_min, t_max, float(points.double().std(0, correction=0).square().mean().sqrt()))
        self.points = points.flatten(1)

    def _log_joint(self, x: Tensor, level: Level) -> Tensor:
        """log p(x_t, point) up to nothing, (B, N)."""
        flat = x.flatten(1)
        points = self.points.to(flat)
        alpha, sigma = along_batch(level.alpha, flat), along_batch(level.sigma, flat)
        # |x - alpha p|^2 written out, so that no (B, N, D) is made
        squares = flat.square().sum(1, keepdim=True) - 2 * alpha * (flat @ points.T) + alpha**2 * points.square().sum(1)
        constant = flat.shape[1] / 2 * torch.log(2 * math.pi * sigma.square()) + math.log(len(points))
        return -squares / (2 * sigma.square()) - constant

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        level = self._level(x_t, t)
        x0 = (self._log_joint(x_t, level).softmax(1) @ self.points.to(x_t)).reshape(x_t.shape)
        return Estimate.of_x0(x_t, x0, level)

    def log_prob(self, x: Sample, t: Time) -> Float[Tensor, " batch"]:
        """log p(x_t) at time t > 0, in nats."""
        return self._log_joint(x, self._level(x, t)).logsumexp(1)


def solve(
    denoiser: BaseDenoiser, x: Sample, t: float, s: float | Sequence[float], tolerance: float = 1e-11
) -> Float[Tensor, "..."]:
    """The probability-flow ODE from x (B, ...) at time t to time s, by an 8th-order method at a tight tolerance.

    Integrated in float64 over the angle (docs/mathematics.md section 4) from t down or up to s. A sequence of times
    gives a stack (len(s), B, ...). The times must lie in (0, 1]: towards 0 the limit is x0_hat at a tiny time.
    """
    times = [float(v) for v in (s if isinstance(s, Sequence) else [s])]
    schedule = denoiser.schedule

    def angle(time: float) -> float:
        return math.atan2(float(schedule.sigma(time)), float(schedule.alpha(time)))

    def scale(time: float) -> float:
        return math.hypot(float(schedule.sigma(time)), float(schedule.alpha(time)))

    def slope(u: float, z: np.ndarray) -> np.ndarray:
        log_snr = host(-2 * math.log(math.tan(u))) if u < math.pi / 2 - 1e-15 else host(-math.inf)
        at = schedule.time(log_snr)
        alpha, sigma = (float(v) for v in schedule.scales(schedule.log_snr(at)))
        level_scale = math.hypot(alpha, sigma)
        position = torch.from_numpy(z * level_scale).reshape(x.shape)
        with torch.no_grad():
            x0 = cast(Estimate, denoiser(position, at)).x0.numpy().ravel()
        return cast(np.ndarray, (z * math.cos(u) - x0) / math.sin(u))

    ends = [angle(time) for time in times]
    start = x.detach().double().cpu().numpy().ravel() / scale(t)
    solution = solve_ivp(
        slope, (angle(t), ends[-1]), start, t_eval=ends, method="DOP853", rtol=tolerance, atol=tolerance
    )
    if not solution.success:
        raise InputError(f"the ODE could not be solved from t = {t} to {s}: {solution.message}")
    states = [torch.from_numpy(solution.y[:, i] * scale(time)).reshape(x.shape) for i, time in enumerate(times)]
    return torch.stack(states) if isinstance(s, Sequence) else states[0]
