"""The order in which training sees the data: an endless stream in which a run's place is one number."""

import hashlib

import torch
from jaxtyping import Int64
from torch import Tensor

from undiffuse.errors import InputError


class Order:
    """Shuffled epochs one after the other. The index at a position depends on (n, seed, position) and nothing else.

    n: how many samples there are, 1 or more.
    seed: any integer.

    Raises: InputError when n is below 1.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise InputError(f"an order of {n} samples: 1 or more is allowed")
        self.n = n
        self.seed = seed
        self._latest = (0, self._shuffled(0))  # only saves time

    def indices(self, first: int, count: int) -> Int64[Tensor, " count"]:
        """The data indices at positions first, ..., first + count - 1, across as many epochs as it takes.

        Raises: InputError when `first` or `count` is negative.
        """
        if first < 0 or count < 0:
            raise InputError(f"positions from {first}, {count} of them: both 0 or more are allowed")
        pieces = [torch.empty(0, dtype=torch.int64)]
        while count > 0:
            epoch, offset = divmod(first, self.n)
            piece = self._epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            first += len(piece)
            count -= len(piece)
        return torch.cat(pieces)

    def _epoch(self, epoch: int) -> Tensor:
        if self._latest[0] != epoch:
            self._latest = (epoch, self._shuffled(epoch))
        return self._latest[1]

    def _shuffled(self, epoch: int) -> Tensor:
        # Hashed, because neighbouring seeds would share epochs if it were seed + epoch.
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        return torch.randperm(self.n, generator=generator)
