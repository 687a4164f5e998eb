"""Randomness that belongs to a sample, not to a batch.

Each sample has a stream of its own: a counter-based generator (Philox 4x32-10, Salmon et al. 2011) keyed by the
sample's seed and counted by element, step and purpose. So the noise of a sample is the same in any batch, in any
order, on any device and any number of processes, and needs no state that a resumed run would have to restore.
It is written in tensor operations on 32-bit words held in int64, and never waits for the device.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from undiffuse.errors import InputError, unknown

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

PURPOSES = {"prior": 0, "step": 1, "time": 2, "noise": 3, "channel": 4, "drop": 5, "augment": 6, "probe": 7}


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

    def __len__(self) -> int:
        return len(self._key[0])

    def _words(self, purpose: str, k: int | Tensor, elements: int) -> Int64[Tensor, "batch words"]:
        if purpose not in PURPOSES:
            raise unknown("purpose of noise", purpose, PURPOSES)
        block = torch.arange(-(-elements // 4), device=self.device)
        step = torch.as_tensor(k, dtype=torch.int64).to(self.device, non_blocking=True).reshape(-1, 1)
        zero = torch.zeros_like(step)
        counter = (block[None], step, zero + PURPOSES[purpose], zero)
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
