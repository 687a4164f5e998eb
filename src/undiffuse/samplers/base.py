"""The contract of a sampler, and the one loop that walks a grid of times."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.schedule import Schedule, Time, along_batch, host

Grid = Float64[Tensor, "points batch"]  # times, falling, on the host
PerSample = Float64[Tensor, " batch"]


class State(NamedTuple):
    """What a sampler carries from step to step: batch-first tensors, so samples can join or leave a batch.

    k: steps taken, per sample (B,); coefficients: (B, N, m), float64 on the host, for the whole grid;
    history: earlier estimates, the latest first, a fixed number of (B, ...). Coefficients of estimates that do not
    exist yet are 0.
    """

    k: Int64[Tensor, " batch"]
    coefficients: Float64[Tensor, "batch steps m"]
    history: tuple[Sample, ...]

    def now(self) -> Float64[Tensor, "m batch"]:
        """The coefficients of the step at hand."""
        return self.coefficients[torch.arange(len(self.k)), self.k].T

    def after(self, *newest: Sample) -> "State":
        """The state one step later, with the newest estimates in front of the history."""
        return State(self.k + 1, self.coefficients, (*newest, *self.history)[: len(self.history)])


class Sampler(ABC):
    """One step of a solver. Nothing is remembered in `self`: all that changes is in the state.

    order: the order of convergence of the deterministic error (weak order where noise is added);
    evaluations: calls of the denoiser per step; stochastic: whether a step draws noise.
    """

    order: int
    evaluations: ClassVar[int] = 1
    stochastic: bool = False

    @abstractmethod
    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        """The float64 coefficients of every step of the grid (N + 1, B)."""

    @property
    def memory(self) -> int:
        """How many earlier estimates a step looks back on."""
        return 0

    def init(self, denoiser: BaseDenoiser, x: Sample, times: Grid) -> State:
        """The state before the first step, with the coefficients of the whole grid worked out once."""
        same = bool((times == times[:, :1]).all())
        coefficients = self.coefficients(denoiser.schedule, times[:, :1] if same else times).movedim(-1, 0)
        if not bool(coefficients.isfinite().all()):
            raise InputError(
                f"{self!r} cannot start where alpha = 0 (t = {float(times[0, 0]):.6g}): "
                "start at an earlier time, or use ddim, ddpm, dpm++ or a solver over the angle"
            )
        history = tuple(torch.zeros_like(x) for _ in range(self.memory))
        counts = torch.zeros(len(x), dtype=torch.int64)
        return State(counts, coefficients.expand(len(x), *coefficients.shape[1:]), history)

    @abstractmethod
    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        """x at times s < t from x at times t, both (B,) on the host, and the state after the step."""


@dataclass(frozen=True)
class LinearSampler(Sampler):
    """Samplers whose step is a fixed combination, one evaluation each (DDPM, DDIM, multistep, Euler-Maruyama):

        x_s = c_x x_t + sum_j c_j x0_hat(j levels ago) + c_z z

    A subclass gives the coefficients (N, 2 + memory + 1, B) as rows c_x, c_0, c_1, ..., c_z, by `levels`;
    the step into sigma = 0 is first order for all of them, x_s = alpha_s x0_hat.
    """

    @abstractmethod
    def rows(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        """The coefficients of every step, those into sigma = 0 being of no account."""

    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        rows = self.rows(schedule, times)
        landing = torch.zeros_like(rows)
        landing[:, 1] = schedule.alpha(times[1:])
        return torch.where((schedule.sigma(times[1:]) == 0)[:, None], landing, rows)

    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        x0 = denoiser(x, t).x0
        c_x, *c_estimates, c_z = state.now()
        result = along_batch(c_x, x) * x
        for c, estimate in zip(c_estimates, (x0, *state.history), strict=True):
            result = result + along_batch(c, x) * estimate
        if self.stochastic:
            assert noise is not None
            result = result + along_batch(c_z, x) * noise.normal("step", state.k)
        return result, state.after(x0)


def check_grid(denoiser: BaseDenoiser, times: Time, batch: int) -> Grid:
    """`times` (N + 1,) or (N + 1, B) as a grid (N + 1, B). Raises: InputError unless it falls within the range."""
    grid = host(times)
    if grid.ndim == 1:
        grid = grid[:, None].expand(-1, batch)
    if grid.ndim != 2 or len(grid) < 2 or grid.shape[1] != batch:
        raise InputError(f"a time grid has shape (N + 1,) or (N + 1, {batch}) with N >= 1, not {tuple(grid.shape)}")
    if not bool((grid[1:] < grid[:-1]).all()):
        raise InputError(
            f"a time grid must fall strictly for sampling, not {[round(v, 6) for v in grid[:, 0].tolist()]}"
        )
    if bool((grid[-1] < 0).any()):
        raise InputError(f"a time grid ends at 0 or above, not at {float(grid[-1].min()):.6g}")
    called = grid[:-1]
    denoiser.level(called[0], batch)
    denoiser.level(called[-1], batch)
    return grid


def walk(
    denoiser: BaseDenoiser,
    sampler: Sampler,
    x: Sample,
    times: Float[Tensor, " points"] | Grid,
    seeds: Int64[Tensor, " batch"] | Sequence[int] | None = None,
) -> Iterator[Sample]:
    """Walk `x`, standing at times[0], down the grid; yields x at times[1], times[2], ..., the last at 0.

    A generator: the caller draws previews, shows progress, or stops. Each level but the last is where the denoiser is
    called; it is never called at sigma = 0. seeds: one per sample, needed where the sampler draws noise.

    Raises: InputError for a grid that does not fall or leaves the denoiser's range, and for missing seeds.
    """
    grid = check_grid(denoiser, times, len(x))
    if sampler.stochastic and seeds is None:
        raise InputError(f"{sampler!r} draws noise: it needs seeds, one integer per sample")
    noise = None if seeds is None else NoiseSource(seeds, x.shape[1:], x.device, x.dtype)
    if noise is not None and len(noise) != len(x):
        raise InputError(f"{len(noise)} seeds were given for {len(x)} samples")
    state = sampler.init(denoiser, x, grid)
    for t, s in itertools.pairwise(grid):
        with torch.no_grad():  # not while the caller holds x
            x, state = sampler.step(denoiser, x, t, s, state, noise)
        yield x


def sample(
    denoiser: BaseDenoiser,
    sampler: Sampler,
    x: Sample,
    times: Float[Tensor, " points"] | Grid,
    seeds: Int64[Tensor, " batch"] | Sequence[int] | None = None,
) -> Sample:
    """Where `walk` ends."""
    for x in walk(denoiser, sampler, x, times, seeds):  # noqa: B007, B020  the last is what is wanted
        pass
    return x
