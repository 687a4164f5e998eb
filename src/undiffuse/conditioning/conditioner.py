"""Several named conditions as one: each part encodes its own, and parts that feed the same input are added."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from undiffuse.errors import unknown


class Condition(nn.Module, ABC):
    """One kind of condition: raw values -> a tensor for the network's keyword argument `feeds`, and its null."""

    feeds: str

    @abstractmethod
    def read(self, raw: object) -> Tensor:
        """Raw values, one or a batch, as a checked tensor with the batch in front. Raises: InputError."""

    @abstractmethod
    def forward(self, values: Tensor) -> Float[Tensor, "batch ..."]:
        """The values as the network takes them."""

    @abstractmethod
    def null(self) -> Float[Tensor, "1 ..."]:
        """What stands in the place of a condition that is not given."""


class Conditioner(nn.Module):
    """Named conditions. A name that is not given, or is dropped, gets its null."""

    def __init__(self, parts: Mapping[str, Condition]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))

    def encode(self, condition: Mapping[str, object], drop: Bool[Tensor, " batch"] | None = None) -> dict[str, Tensor]:
        """{network keyword: (B, ...)}. drop: samples (B,) that get the null of every condition."""
        for name in condition:
            if name not in self.parts:
                raise unknown("condition", name, self.parts)
        encoded: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            assert isinstance(part, Condition)
            values = part.null()
            if condition.get(name) is not None:
                given = part(part.read(condition[name]).to(values.device, non_blocking=True))
                if drop is None:
                    values = given
                else:
                    mask = drop.to(values.device, non_blocking=True).reshape(-1, *[1] * (given.ndim - 1))
                    values = torch.where(mask, values, given)
            encoded[part.feeds] = encoded[part.feeds] + values if part.feeds in encoded else values
        return encoded
