"""Randomness that belongs to a sample, not to a batch.

Each sample has a stream of its own: a counter-based generator (Philox 4x32-10, Salmon et al. 2011) keyed by the
sample's seed and counted by element, step and purpose. So the noise of a sample is the same in any batch, in any
order, on any device and any number of processes, and needs no state that a resumed run would have to restore.
It is written in tensor operations on 32-bit words held in int64, and never waits for the device.
"""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.errors import InputError, unknown

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

PURPOSES = {
    "prior": 0, "step": 1, "time": 2, "noise": 3, "channel": 4, "drop": 5, "augment": 6, "probe": 7,
    "churn": 8, "correction": 9, "restart": 10, "brownian": 11, "dequantise": 12,
}  # fmt: skip
_HALF_RANGE, _DEPTH = 128.0, 22  # of the Brownian tree, in log clock: its finest cells are 6e-5 wide


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words (in int64) of broadcastable counters and keys of 32-bit words: Philox 4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap at 2^64, which leaves both 32-bit halves right
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _WORD) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32 & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


class NoiseSource:
    """The streams of a batch of samples.

    seeds: one non-negative integer below 2^63 per sample; the sample's whole identity.
    shape: the shape of one sample.
    dtype: float32, or float64 for exact work. Both come from the same random words.
    """

    def __init__(
        self,
        seeds: Int64[Tensor, " batch"] | Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        words = torch.as_tensor(seeds, dtype=torch.int64)
        if words.ndim != 1:
            raise InputError(f"seeds must be one integer per sample, of shape (B,), not {tuple(words.shape)}")
        if words.device.type == "cpu" and bool((words < 0).any()):
            raise InputError(f"seeds must be in [0, 2^63), not {int(words.min())}")
        self.seeds = words  # where they were given
        words = words.to(device, non_blocking=True)
        self.shape, self.device = tuple(shape), words.device
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._key = (words & _WORD, words >> 32)
        self._branch: int | Tensor = 0
        self._path: list[tuple[Tensor, Tensor]] = []  # the last Brownian query's nodes and draws: the next shares some

    def branch(self, number: int | Tensor) -> "NoiseSource":
        """Streams of their own for the same samples, one for each number (an int or one per sample) in [1, 4096)."""
        numbers = torch.as_tensor(number)
        if numbers.device.type == "cpu" and not bool(((numbers >= 1) & (numbers < 4096)).all()):
            raise InputError(f"the number of a branch must be in [1, 4096), not {number}")
        parent = self._branch
        if isinstance(parent, int) and parent >= 2**20:
            raise InputError("streams branch twice at most: put fewer samplers around one another")
        branched = copy.copy(self)
        branched._branch, branched._path = self._branch * 4096 + number, []
        return branched

    def __len__(self) -> int:
        return len(self._key[0])

    def _words(self, purpose: str, k: int | Tensor, elements: int) -> Int64[Tensor, "batch words"]:
        if purpose not in PURPOSES:
            raise unknown("purpose of noise", purpose, PURPOSES)
        block = torch.arange(-(-elements // 4), device=self.device)
        step = torch.as_tensor(k, dtype=torch.int64).to(self.device, non_blocking=True).reshape(-1, 1)
        zero = torch.zeros_like(step)
        branch = torch.as_tensor(self._branch).to(self.device, non_blocking=True).reshape(-1, 1)
        counter = (block[None], step, zero + PURPOSES[purpose], zero + branch)
        words = philox(counter, (self._key[0][:, None], self._key[1][:, None]))
        return torch.stack([word.expand(len(self), len(block)) for word in words], -1).flatten(1)

    def uniform(self, purpose: str, k: int | Tensor = 0, shape: Sequence[int] = ()) -> Float[Tensor, "batch ..."]:
        """Uniform draws in (0, 1), of shape (B, *shape). k: the number of the draw, an int or one per sample (B,)."""
        elements = math.prod(shape)
        words = self._words(purpose, k, elements)[:, :elements]
        if self.dtype == torch.float32:  # 23 bits and a half fit a float32 exactly; more would round up to 1
            uniform = ((words >> 9).to(self.dtype) + 0.5) * 2.0**-23
        else:
            uniform = (words.to(self.dtype) + 0.5) * 2.0**-32
        return uniform.reshape(len(self), *shape)

    def normal(
        self, purpose: str, k: int | Tensor = 0, shape: Sequence[int] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Standard normal draws of shape (B, *shape), by default the samples' shape (Box & Muller 1958)."""
        shape = self.shape if shape is None else tuple(shape)
        elements = math.prod(shape)
        pairs = self._words(purpose, k, elements).unflatten(1, (-1, 2))
        uniform = (pairs.to(self.dtype) + 0.5) * 2.0**-32
        radius = (-2 * uniform[..., 0].log()).sqrt()
        angle = 2 * math.pi * uniform[..., 1]
        draws = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        return draws.flatten(1)[:, :elements].reshape(len(self), *shape)

    def brownian(self, start: Float64[Tensor, " batch"], end: Float64[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """The increment of each sample's Brownian motion W between two clock times, divided by its standard deviation.

        start, end: logarithms of the clock times, per sample, on the host. The path belongs to the sample: the
        increments of a fine grid add up to those of a coarse one, so a picture keeps its noise when the number of steps
        changes. Exact for times that are far apart beside the finest cells, 6e-5 of log clock; within a cell the path
        is smooth.

        Raises: InputError for two times that are no eight cells apart.
        """
        rises = end > start
        nearest = 8 * 2 * _HALF_RANGE / 2**_DEPTH
        if bool((((end - start).abs() < nearest) & (end != start)).any()):
            raise InputError(
                f"a Brownian path is known down to steps of {nearest:.2g} in log clock, and one of "
                f"{float((end - start).abs().min()):.2g} was asked for: take fewer steps, or leave brownian out"
            )
        first, last = torch.where(rises, start, end), torch.where(rises, end, start)
        decay = -(last - first).nan_to_num(posinf=math.inf)
        shape = (-1, *[1] * len(self.shape))
        scale = torch.where(rises, 1.0, -1.0) / (-torch.expm1(decay)).clamp(min=1e-300).sqrt()
        ending, starting = (
            (c * scale).to(self.device, self.dtype, non_blocking=True).reshape(shape)
            for c in (torch.ones_like(decay), torch.exp(decay / 2))
        )
        # the earlier one first: its path is the one that the last query left behind
        earlier, later = (first, last) if bool(rises.any()) else (last, first)
        values = {id(point): self._stationary(point) for point in (earlier, later)}
        return ending * values[id(last)] - starting * values[id(first)]

    def _stationary(self, log_clock: Float64[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """W(u) / sqrt(u) at u = e^log_clock: an Ornstein-Uhlenbeck process in log u, of covariance e^(-|difference|/2).

        Found by bisection: the value in the middle of a cell is drawn given those at its ends.
        """
        position = log_clock.clamp(-_HALF_RANGE, _HALF_RANGE)
        left, right = torch.full_like(position, -_HALF_RANGE), torch.full_like(position, _HALF_RANGE)
        return self._descend(position, left, right)

    def _draw(self, depth: int, node: Tensor) -> Tensor:
        """The draw that belongs to a node of the tree; kept, because the next query passes many of the same nodes."""
        if depth < len(self._path) and torch.equal(self._path[depth][0], node):
            return self._path[depth][1]
        drawn = self.normal("brownian", node)
        self._path[depth:] = [(node, drawn)]
        return drawn

    def _descend(self, position: Tensor, left: Tensor, right: Tensor) -> Tensor:
        shape = (-1, *[1] * len(self.shape))

        def bridge(at: Tensor, value_left: Tensor, value_right: Tensor, draw: Tensor) -> Tensor:
            before, after = -torch.expm1(left - at), -torch.expm1(at - right)
            whole = -torch.expm1(left - right)
            of_left, of_right = torch.exp((left - at) / 2) * after / whole, torch.exp((at - right) / 2) * before / whole
            weights = torch.stack([of_left, of_right, (before * after / whole).sqrt()])
            a, b, c = weights.to(self.device, self.dtype, non_blocking=True).reshape(3, *shape)
            return a * value_left + b * value_right + c * draw

        cell = torch.zeros_like(position, dtype=torch.int64)
        at_left, at_right = self._draw(0, torch.zeros_like(cell)), self._draw(1, torch.full_like(cell, 2**31))
        for level in range(_DEPTH):
            middle = (left + right) / 2
            value = bridge(middle, at_left, at_right, self._draw(2 + level, 2**level + cell))
            above = position >= middle
            chosen = above.to(self.device, non_blocking=True).reshape(shape)
            at_left, at_right = torch.where(chosen, value, at_left), torch.where(chosen, at_right, value)
            left, right = torch.where(above, middle, left), torch.where(above, right, middle)
            cell = 2 * cell + above
        return bridge(position, at_left, at_right, self._draw(2 + _DEPTH, 2**_DEPTH + cell))
