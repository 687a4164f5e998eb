"""The contract of a sampler, and the one loop that walks a grid of times."""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Sample
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.schedule import Schedule, Time, along_batch, host

Grid = Float64[Tensor, "points batch"]  # times on the host, falling; rising for inversion
PerSample = Float64[Tensor, " batch"]


class State(NamedTuple):
    """What a sampler carries from step to step: batch-first tensors, so samples can join or leave a batch.

    k: steps taken; evaluations: calls of the denoiser; both per sample (B,), on the host.
    coefficients: (B, N, m), float64 on the host, for the whole grid.
    history: what was estimated earlier, the latest first, a fixed number of (B, ...). Coefficients of what does not
    exist yet are 0.
    """

    k: Int64[Tensor, " batch"]
    evaluations: Int64[Tensor, " batch"]
    coefficients: Float64[Tensor, "batch steps m"]
    history: tuple[Sample, ...]

    def now(self) -> Float64[Tensor, "m batch"]:
        """The coefficients of the step at hand."""
        step = None if torch.compiler.is_compiling() else self.common_step()
        if step is not None:
            return self.coefficients[:, step].T
        return self.coefficients[torch.arange(len(self.k)), self.k].T

    def common_step(self) -> int | None:
        """Which step this is, where all samples walk one grid and stand at the same step of it; else None."""
        steps = self.k.tolist()
        one_grid = len(steps) == 1 or self.coefficients.stride(0) == 0
        return steps[0] if one_grid and steps.count(steps[0]) == len(steps) else None

    def after(self, evaluations: int | Int64[Tensor, " batch"], *history: Sample) -> "State":
        """The state one step and so many evaluations later, with a new history where one is given."""
        return State(self.k + 1, self.evaluations + evaluations, self.coefficients, history or self.history)


@dataclass(frozen=True)
class Sampler(ABC):
    """One step of a solver. Nothing is remembered in `self`: all that changes is in the state.

    order: what its literature calls its order; convergence_order: the order at which its error falls, as the tests
    measure it (weak order where noise is added);
    stages: calls of the denoiser in a whole step; stochastic: whether a step draws noise;
    brownian: whether the noise is that of one Brownian path per sample, whatever the number of steps.
    """

    order = 1
    stages = 1
    stochastic = False
    brownian = False

    @abstractmethod
    def coefficients(self, schedule: Schedule, times: Grid) -> Float64[Tensor, "steps m batch"]:
        """The float64 coefficients of every step of the grid (N + 1, B)."""

    @property
    def convergence_order(self) -> int:
        """The order at which the error between two interior levels falls with the step; by default `order`."""
        return self.order

    @property
    def retained(self) -> int:
        """How many tensors of a sample's shape the history holds."""
        return 0

    def evaluations(self, steps: int) -> int:
        """Calls of the denoiser for a grid of so many steps that ends at 0."""
        return self.stages * (steps - 1) + 1

    def init(self, denoiser: BaseDenoiser, x: Sample, times: Grid) -> State:
        """The state before the first step, with the coefficients of the whole grid worked out once."""
        if bool((times == times[:, :1]).all()):
            kept = "__dataclass_fields__" in vars(type(self)) and not isinstance(denoiser.schedule, torch.nn.Module)
            make = _of_one_grid if kept else _of_one_grid.__wrapped__
            coefficients = make(type(self), self, denoiser.schedule, tuple(times[:, 0].tolist()))
        else:
            coefficients = self.coefficients(denoiser.schedule, times).movedim(-1, 0)
        if not bool(coefficients.isfinite().all()):
            raise InputError(
                f"{self!r} cannot start where alpha = 0 (t = {float(times[0, 0]):.6g}): "
                "start at an earlier time, or use ddim, ddpm, dpm++ or a solver over the angle"
            )
        history = tuple(torch.zeros_like(x) for _ in range(self.retained))
        counts = torch.zeros(len(x), dtype=torch.int64)
        return State(counts, counts, coefficients.expand(len(x), *coefficients.shape[1:]), history)

    @abstractmethod
    def step(
        self, denoiser: BaseDenoiser, x: Sample, t: PerSample, s: PerSample, state: State, noise: NoiseSource | None
    ) -> tuple[Sample, State]:
        """x at times s < t from x at times t, both (B,) on the host, and the state after the step."""


@functools.lru_cache(maxsize=256)
def _of_one_grid(
    kind: type[Sampler], sampler: Sampler, schedule: Schedule, times: tuple[float, ...]
) -> Float64[Tensor, "one steps m"]:
    """The coefficients of a grid that all samples share; kept, because batch after batch walks the same one.

    kind: part of the key, because dataclasses of two classes may be equal.
    """
    return sampler.coefficients(schedule, torch.tensor(times, dtype=torch.float64)[:, None]).movedim(-1, 0)


def check_grid(denoiser: BaseDenoiser, times: Time, batch: int) -> Grid:
    """`times` (N + 1,) or (N + 1, B) as a grid (N + 1, B).

    Raises: InputError unless it falls or rises strictly, for all samples, within the denoiser's range.
    """
    grid = host(times)
    if batch == 0:
        raise InputError("there is no sample to walk: the batch is empty")
    if grid.ndim == 1:
        grid = grid[:, None].expand(-1, batch)
    if grid.ndim != 2 or len(grid) < 2 or grid.shape[1] != batch:
        raise InputError(f"a time grid has shape (N + 1,) or (N + 1, {batch}) with N >= 1, not {tuple(grid.shape)}")
    rises = bool((grid[1:] > grid[:-1]).all())
    if not rises and not bool((grid[1:] < grid[:-1]).all()):
        raise InputError(
            "a time grid must fall strictly for sampling (rise strictly for inversion), "
            f"not {[round(v, 6) for v in grid[:, 0].tolist()]}"
        )
    first = grid[0] if rises else grid[-1]
    if bool((first < 0).any()):
        raise InputError(f"a time grid lies at 0 or above, not at {float(first.min()):.6g}")
    starts_at_0 = first == 0
    if rises and bool(starts_at_0.any()) and not bool(starts_at_0.all()):
        raise InputError("rising time grids start at 0 for all samples or for none")
    called = grid[1:] if rises and bool(starts_at_0.any()) else grid if rises else grid[:-1]
    denoiser.level(called[0], batch)
    denoiser.level(called[-1], batch)
    return grid


def walk(
    denoiser: BaseDenoiser,
    sampler: Sampler,
    x: Sample,
    times: Float[Tensor, " points"] | Grid,
    seeds: Int64[Tensor, " batch"] | Sequence[int] | None = None,
) -> Generator[Sample, None, State | None]:
    """Walk `x`, standing at times[0], along the grid; yields x at times[1], times[2], ... Gives back the last state.

    A falling grid samples, down to 0; each of its levels but the last is where the denoiser is called, never sigma = 0.
    A rising grid inverts, by the same steps; from 0 it starts with x_s = alpha_s x + sigma_s eps_hat(alpha_s x, s).
    A generator: the caller draws previews, shows progress, or stops. seeds: one per sample, needed where the sampler
    draws noise.

    Raises: InputError for a grid that neither falls nor rises or leaves the denoiser's range, for missing seeds, and
    for a rising grid where the sampler draws noise.
    """
    grid = check_grid(denoiser, times, len(x))
    rises = bool((grid[0] < grid[1]).any())
    if sampler.stochastic and rises:
        raise InputError(f"{sampler!r} draws noise, so it cannot walk a rising grid: invert with a deterministic one")
    if sampler.stochastic and seeds is None:
        raise InputError(f"{sampler!r} draws noise: it needs seeds, one integer per sample")
    noise = None if seeds is None else NoiseSource(seeds, x.shape[1:], x.device, x.dtype)
    if noise is not None and len(noise) != len(x):
        raise InputError(f"{len(noise)} seeds were given for {len(x)} samples")
    x = x if x.dtype == torch.float64 else x.float()  # half precision is the network's business
    state, before = None, 0
    if rises and bool((grid[0] == 0).any()):
        with torch.no_grad():
            level = denoiser.level(grid[1], len(x))
            x = along_batch(level.alpha, x) * x
            x = x + along_batch(level.sigma, x) * denoiser(x, grid[1]).noise
        yield x
        grid, before = grid[1:], 1
    if len(grid) > 1:
        state = sampler.init(denoiser, x, grid)
        state = state._replace(evaluations=state.evaluations + before)
    for t, s in itertools.pairwise(grid):
        assert state is not None
        with torch.no_grad():  # not while the caller holds x
            x, state = sampler.step(denoiser, x, t, s, state, noise)
        yield x
    return state


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
