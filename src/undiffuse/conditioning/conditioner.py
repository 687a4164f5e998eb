"""Several named conditions as one: each part encodes its own, and parts that feed the same input are merged."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from undiffuse.errors import InputError, unknown

Drop = Bool[Tensor, " batch"] | Mapping[str, Tensor] | None  # of every condition together, or of each by its name


class Condition(nn.Module, ABC):
    """One kind of condition: raw values -> a tensor for the network's keyword argument `feeds`, and its null.

    feeds: "vector" (B, width), added to the embedding of the noise level; "tokens" (B, L, width), attended to; "image"
    (B, c, *space), laid beside x. optional: whether there is a null, for conditions that are dropped or not given.

    A kind that feeds "vector" takes the network's `embedding_width` as `width`; one that feeds "image" or "tokens" says
    its own width in `channels` or `context`, which the network is made with.

    told: whether values are known in training alone: never asked for and never dropped, with the null in sampling.
    """

    feeds: ClassVar[str]
    told: ClassVar[bool] = False
    shares_space: ClassVar[bool] = False  # whether what is done to a sample's pixels must be done to these values too
    optional: bool = True
    derived: bool = False  # whether values are made from the samples themselves, by `derive`

    @property
    def droppable(self) -> bool:
        """Whether it is dropped in training, with the others or alone."""
        return self.optional and not self.told

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        """The arguments that the data decide: from values (N, ...) to train on and held out, and names of classes.

        What must take every value (a vocabulary, a number of classes) follows from both, statistics from the first.
        """
        return {}

    @classmethod
    def derives(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether, with these arguments, values are made from the samples by `derive`, and not read from the data."""
        return False

    def derive(self, samples: Tensor) -> Tensor:
        """Values from samples as they are stored, uint8 (B, C, H, W)."""
        raise InputError(f"a condition of the kind {type(self).__name__.lower()} is not made from the sample")

    @abstractmethod
    def read(self, raw: object) -> Tensor:
        """Raw values, one or a batch, as a checked tensor with the batch in front. Raises: InputError."""

    @abstractmethod
    def forward(self, values: Tensor) -> Float[Tensor, "batch ..."]:
        """The values as the network takes them."""

    @abstractmethod
    def null(self) -> Float[Tensor, "1 ..."]:
        """What stands in the place of a condition that is not given."""


def _added(parts: list[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _one_after_the_other(parts: list[Tensor]) -> Tensor:
    """Joined along axis 1, and broadcast along the others (a null has one sample, and one pixel)."""
    try:
        batch, *rest = torch.broadcast_shapes(*((len(part), *part.shape[2:]) for part in parts))
    except RuntimeError as error:
        sizes = " and ".join(str(tuple(part.shape[2:])) for part in parts)
        raise InputError(f"conditions that are laid beside one another must be of one size, not {sizes}") from error
    return torch.cat([part.expand(batch, part.shape[1], *rest) for part in parts], 1)


MERGES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "vector": _added,
    "tokens": _one_after_the_other,
    "image": _one_after_the_other,
}


def check_name(name: str) -> None:
    """Raises: InputError for a name that no condition can have."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise InputError(f"a condition's name has letters, digits, hyphens and underscores, not {name!r}")
    if hasattr(nn.ModuleDict(), name):
        raise InputError(f"a condition cannot be called {name!r}, which PyTorch has a use for: name it {name}_, say")


class Conditioner(nn.Module):
    """Named conditions. A name that is not given, or is dropped, gets its null."""

    def __init__(self, parts: Mapping[str, Condition]) -> None:
        super().__init__()
        for name in parts:
            check_name(name)
        tokens = {name: part for name, part in parts.items() if part.feeds == "tokens"}
        for name, part in tokens.items():  # a null is as long as what it stands for, so that nothing else moves
            if len(tokens) > 1 and getattr(part, "length", None) is None:
                raise InputError(
                    f"{', '.join(map(repr, tokens))} feed tokens together, so {name!r} has no length of its "
                    "own to choose: give it one"
                )
        self.parts = nn.ModuleDict(dict(parts))

    def part(self, name: str) -> Condition:
        """The condition called `name`. Raises: InputError for an unknown one, with the nearest known."""
        if name not in self.parts:
            raise unknown("condition", name, self.parts)
        part = self.parts[name]
        assert isinstance(part, Condition)
        return part

    def read(self, condition: Mapping[str, object]) -> dict[str, Tensor]:
        """Raw values as checked tensors with the batch in front, by name. Raises: InputError."""
        return {name: self.part(name).read(raw) for name, raw in condition.items() if raw is not None}

    def encode(self, condition: Mapping[str, object], drop: Drop = None) -> dict[str, Tensor]:
        """{network keyword: (B, ...)}.

        drop: samples (B,) that get the null: of every condition that is droppable, or of each by its name.

        Raises: InputError for unknown names, values that are none, and nulls that a part does not have.
        """
        for name in [*condition, *(drop if isinstance(drop, Mapping) else ())]:
            self.part(name)
        encoded: dict[str, list[Tensor]] = {}
        for name in self.parts:
            part = self.part(name)
            dropped = drop.get(name) if isinstance(drop, Mapping) else drop if part.droppable else None
            encoded.setdefault(part.feeds, []).append(_encoded(name, part, condition.get(name), dropped))
        return {feeds: values[0] if len(values) == 1 else MERGES[feeds](values) for feeds, values in encoded.items()}


def _encoded(name: str, part: Condition, raw: object, dropped: Tensor | None) -> Tensor:
    if dropped is not None and dropped.device.type == "cpu" and bool(dropped.all()):
        raw = None  # nothing is left of it, so it is not encoded
    if raw is None or dropped is not None:
        if not part.optional:
            raise InputError(
                f"the condition {name!r} must be given for every sample: the model has no null for it, so it cannot be "
                "left out, dropped or guided with"
            )
        null = part.null()
        if raw is None:
            return null
    device = next((tensor.device for tensor in (*part.parameters(), *part.buffers())), None)
    values = part.read(raw)
    given = part(values if device is None else values.to(device, non_blocking=True))
    if dropped is None:
        return given
    mask = dropped.to(given.device, non_blocking=True).reshape(-1, *[1] * (given.ndim - 1))
    return torch.where(mask, null.to(given.device, non_blocking=True), given)
