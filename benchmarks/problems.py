"""Test problems whose denoiser and probability-flow ODE are known exactly, for any schedule.

Each is a mixture of Gaussians in float64 (`undiffuse.exact.Mixture`), so that a sampler's error is its own: there is no
network, and no sampling noise in a score.

    ring      2-D       eight Gaussians on a circle: sharp decisions between modes
    low-rank  64-D      eight components, each on six directions of its own: data near a low-dimensional set
    image     3,072-D   four components with the power-law spectrum of 32 x 32 x 3 images: every scale of noise matters
"""

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from undiffuse import exact
from undiffuse.schedule import EDM, CosineTable, Linear, Schedule

SCHEDULES: dict[str, Schedule] = {"linear": Linear(), "cosine": CosineTable(), "edm": EDM(sigma_max=80.0)}
END_LOG_SNR = 30.0  # where the exact solution ends: sigma / alpha = 3e-7, from where x0_hat is the limit


@dataclass(frozen=True)
class Problem:
    """A mixture (weights (K,), means (K, D), diagonal covariances (K, D)) and how many trajectories are compared.

    tolerance: of the ODE solution, relative and absolute. A run with a hundredth of it changes the end by at most 2e-12
    (ring), 1e-11 (low-rank) and 5e-8 (image) in root mean square, on every schedule of `SCHEDULES`.
    """

    name: str
    batch: int
    tolerance: float
    mixture: Callable[[], tuple[Tensor, Tensor, Tensor]]

    def denoiser(self, schedule: Schedule) -> exact.Mixture:
        """E[x_0 | x_t] on that schedule; float64."""
        return exact.Mixture(schedule, *self.mixture())


class Reference(NamedTuple):
    """Start points x_T (B, D) at t = 1 and where the probability-flow ODE takes them, x_0 (B, D); float64."""

    x_T: Tensor
    x_0: Tensor


@functools.cache
def ring() -> tuple[Tensor, Tensor, Tensor]:
    """Eight on a circle of radius 1.4, each of std 0.1 (7% of the radius): data std 1 per coordinate."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.ones(8, dtype=torch.float64), means, torch.full((8, 2), 0.1**2, dtype=torch.float64)


# The next two are written in a basis in which every covariance is diagonal. A rotation of the data space would change
# nothing: all the solvers compared are linear in x and x0_hat with scalar coefficients, so they commute with it, and
# the root-mean-square error is the same.


@functools.cache
def low_rank() -> tuple[Tensor, Tensor, Tensor]:
    """Eight components of std 0.7 to 1.4 along six axes each and 0.03 along the other 58: data std 0.5."""
    generator = torch.Generator().manual_seed(64)
    floor, rank = 0.03, 6
    weights = 0.5 + torch.rand(8, dtype=torch.float64, generator=generator)
    means = 0.35 * torch.randn(8, 64, dtype=torch.float64, generator=generator)
    variances = torch.full((8, 64), floor**2, dtype=torch.float64)
    for row in variances:
        axes = torch.randperm(64, generator=generator)[:rank]
        row[axes] = torch.linspace(0.7, 1.4, rank, dtype=torch.float64).square()
    return _scaled(weights, means, variances, 0.5)


@functools.cache
def image() -> tuple[Tensor, Tensor, Tensor]:
    """Four components of 32 x 32 x 3 images: variance 1 / f^2 at spatial frequency f, data std 0.5 per value.

    The axes are cosine transforms of a luminance and two colour-difference channels, whose variances stand 1 : 0.1 :
    0.05, about as in natural images. The components differ in the exponent, 1.6 to 2.4 (natural images have 2 and
    scatter by so much: Field 1987), in contrast, and in mean, a picture of the same spectrum. Standard deviations
    along the axes run from 20 (the brightness: 0.6 per pixel) to 0.015.
    """
    generator = torch.Generator().manual_seed(3072)
    index = torch.arange(32, dtype=torch.float64)
    frequency = (index[:, None].square() + index.square()).sqrt()
    frequency[0, 0] = 0.5  # the mean brightness: half a period across the picture's width
    channels = torch.tensor([1.0, 0.1, 0.05], dtype=torch.float64)
    exponents = torch.tensor([1.6, 1.9, 2.1, 2.4], dtype=torch.float64)
    contrasts = torch.tensor([0.6, 1.0, 1.3, 0.8], dtype=torch.float64)
    spectra = channels[:, None, None] * frequency ** -exponents[:, None, None, None]
    spectra = (spectra / spectra.sum((1, 2, 3), keepdim=True) * contrasts.square()[:, None, None, None]).flatten(1)
    means = 0.6 * spectra.sqrt() * torch.randn(4, 3072, dtype=torch.float64, generator=generator)
    return _scaled(torch.tensor([0.3, 0.3, 0.2, 0.2], dtype=torch.float64), means, spectra, 0.5)


def _scaled(weights: Tensor, means: Tensor, variances: Tensor, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture moved to mean 0 and scaled to a root-mean-square standard deviation `std` per dimension."""
    weights = weights / weights.sum()
    means = means - weights @ means
    factor = std / (weights @ (means.square() + variances)).mean().sqrt()
    return weights, factor * means, factor.square() * variances


PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem("ring", 256, 1e-11, ring),
        Problem("low-rank", 128, 1e-11, low_rank),
        Problem("image", 8, 1e-9, image),
    )
}


def references(problem: Problem, schedule: Schedule, seed: int = 0, batch: int | None = None) -> Reference:
    """Start points, drawn from the exact marginal at t = 1 (not the Gaussian prior), and the exact ODE solution.

    The same draws of data and noise on every schedule. Kept for the rest of the process.
    """
    return _references(problem.name, schedule, seed, problem.batch if batch is None else batch, problem.tolerance)


@functools.cache
def _references(name: str, schedule: Schedule, seed: int, batch: int, tolerance: float) -> Reference:
    denoiser = PROBLEMS[name].denoiser(schedule)
    generator = torch.Generator().manual_seed(seed)
    data = denoiser.draw(batch, generator)
    noise = torch.randn(data.shape, dtype=torch.float64, generator=generator)
    start = schedule.alpha(1.0) * data + schedule.sigma(1.0) * noise
    end = float(schedule.time(END_LOG_SNR))
    with torch.no_grad():
        return Reference(start, denoiser(exact.solve(denoiser, start, 1.0, end, tolerance), end).x0)


def rms_error(x: Tensor, truth: Tensor) -> float:
    """The root mean square of x - truth over batch and dimensions."""
    return float((x - truth).square().mean().sqrt())


def keep_memory() -> None:
    """Keep freed memory in the process (glibc).

    By default every temporary above 128 KiB is a mapping of its own, and zeroing its pages takes three quarters of the
    time of the image problem.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
