"""Sequences as conditions, attended to by the network: token numbers, or vectors that another model made of a text."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError

PADDING = -1


class Tokens(Condition):
    """Token numbers (B, L), -1 where a sequence has ended, as learned vectors (B, L, context) with learned positions.

    vocabulary: how many tokens there are; length: the longest sequence. Padding and the null are one learned vector.
    """

    feeds = "tokens"

    def __init__(self, vocabulary: int, length: int, context: int = 256, optional: bool = True) -> None:
        super().__init__()
        for name, value in (("vocabulary", vocabulary), ("length", length), ("context", context)):
            if value < 1:
                raise InputError(f"{name} of tokens must be 1 or more, not {value}")
        self.vocabulary, self.length, self.context, self.optional = vocabulary, length, context, optional
        self.embedding = nn.Embedding(vocabulary + 1, context)
        self.positions = nn.Parameter(0.02 * torch.randn(length, context))

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        return {"vocabulary": max(int(train.max()), int(held_out.max())) + 1, "length": train.shape[1]}

    def read(self, raw: object) -> Int64[Tensor, "batch length"]:
        """raw: integers (L,) or (B, L), or lists of them of any lengths up to `length`."""
        if isinstance(raw, Sequence) and not isinstance(raw, str):
            raw = padded(raw)
        values = torch.as_tensor(raw)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise InputError(f"tokens must be integers (B, L), not {values.dtype} {tuple(values.shape)}")
        if not 1 <= values.shape[1] <= self.length:
            raise InputError(f"a sequence has 1 to {self.length} tokens for this model, not {values.shape[1]}")
        # to full length always, as in training: padding is attended to
        values = F.pad(values.long(), (0, self.length - values.shape[1]), value=PADDING)
        if values.device.type == "cpu" and bool(((values < PADDING) | (values >= self.vocabulary)).any()):
            wrong = values[(values < PADDING) | (values >= self.vocabulary)][0]
            raise InputError(
                f"token {int(wrong)} is out of range: the model knows 0 to {self.vocabulary - 1}, and -1 for padding"
            )
        return values

    def forward(self, values: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length context"]:
        absent = values == PADDING
        vectors: Tensor = self.embedding(values.masked_fill(absent, self.vocabulary))
        return vectors + self.positions[: values.shape[1]].masked_fill(absent[..., None], 0.0)

    def null(self) -> Float[Tensor, "1 length context"]:
        return self.embedding.weight[self.vocabulary :, None].expand(-1, self.length, -1)


def padded(sequences: Sequence[Any]) -> Int64[Tensor, "batch length"]:
    """A sequence of token numbers, or several, as one tensor, ended by -1 up to the longest. Raises: InputError."""
    try:
        rows = [sequences] if not sequences or isinstance(sequences[0], int) else list(sequences)
        length = max(1, *(len(row) for row in rows))
        return torch.tensor([[*row, *[PADDING] * (length - len(row))] for row in rows], dtype=torch.int64)
    except (TypeError, ValueError) as error:
        raise InputError(f"tokens must be integers, not {sequences!r:.80}") from error


class Embeddings(Condition):
    """Vectors (B, L, size) made by another model, a text encoder say, as they are.

    size: of a vector; length: of a sequence, None for any; optional: whether a learned sequence (of one vector,
    where any length will do) stands for what is not given.
    """

    feeds = "tokens"

    def __init__(self, size: int, length: int | None = None, optional: bool = True) -> None:
        super().__init__()
        for name, value in (("size", size), ("length", 1 if length is None else length)):
            if value < 1:
                raise InputError(f"{name} of embeddings must be 1 or more, not {value}")
        self.size, self.context, self.length, self.optional = size, size, length, optional
        self.absent = nn.Parameter(0.02 * torch.randn(1, length or 1, size)) if optional else None

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        return {"size": train.shape[2], "length": train.shape[1]}

    def read(self, raw: object) -> Float[Tensor, "batch length size"]:
        """raw: (L, size) or (B, L, size)."""
        values = torch.as_tensor(raw, dtype=torch.float32)
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3 or values.shape[2] != self.size or values.shape[1] < 1:
            raise InputError(f"embeddings must have shape (B, L, {self.size}), not {tuple(values.shape)}")
        if self.length is not None and values.shape[1] != self.length:
            raise InputError(f"a sequence has {self.length} vectors for this model, not {values.shape[1]}")
        if values.device.type == "cpu" and not bool(values.isfinite().all()):
            raise InputError("embeddings must be finite, but hold NaN or infinity")
        return values

    def forward(self, values: Float[Tensor, "batch length size"]) -> Float[Tensor, "batch length size"]:
        return values

    def null(self) -> Float[Tensor, "1 length size"]:
        assert self.absent is not None
        return self.absent
