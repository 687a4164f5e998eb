"""A class label: one learned vector per class, and one for no class."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError, unknown


def class_names(classes: Sequence[str] | int) -> tuple[str, ...]:
    """Names of classes; for a number of them, "0", "1", ... Raises: InputError where there is none."""
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if not names:
        raise InputError(f"a label needs at least 1 class, not {classes!r}")
    return names


def class_numbers(values: Sequence[object], classes: tuple[str, ...]) -> list[int]:
    """Classes by name or number as numbers. Raises: InputError for names that are not known."""
    for value in values:
        if isinstance(value, str) and value not in classes:
            raise unknown("class", value, classes)
    return [classes.index(value) if isinstance(value, str) else value for value in values]  # type: ignore[misc]


def check_range(labels: Int64[Tensor, "..."], classes: int) -> None:
    """Raises: InputError for labels outside 0..classes-1; on the host only, as a device would have to wait."""
    if labels.device.type == "cpu" and bool(((labels < 0) | (labels >= classes)).any()):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise InputError(f"label {int(wrong)} is out of range: the model knows 0 to {classes - 1}")


class OfClasses(Condition):
    """What a label and a set of labels share: a learned vector (width,) for each class, and one for no answer.

    classes: their names, or how many; optional: whether there is that one more vector, the null.
    """

    feeds = "vector"

    def __init__(self, classes: Sequence[str] | int, width: int, optional: bool = True) -> None:
        super().__init__()
        self.classes, self.optional = class_names(classes), optional
        self.embedding = nn.Embedding(len(self.classes) + optional, width)  # the last row is the null

    @classmethod
    def facts(cls, train: Tensor, held_out: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        return {"classes": list(classes)}

    def null(self) -> Float[Tensor, "1 width"]:
        return self.embedding.weight[len(self.classes) :]


class Label(OfClasses):
    """Labels 0..classes-1 as vectors (B, width), added to the embedding of the noise level."""

    def read(self, raw: object) -> Int64[Tensor, " batch"]:
        """raw: a number or a name, or one per sample."""
        if isinstance(raw, str):
            raw = [raw]
        if isinstance(raw, Sequence) and any(isinstance(value, str) for value in raw):
            raw = class_numbers(raw, self.classes)
        try:
            labels = torch.as_tensor(raw).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"labels must be integers or names of classes, not {raw!r:.80}") from error
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"labels must be integers, not {labels.dtype}")
        labels = labels.long()
        check_range(labels, len(self.classes))
        return labels

    def forward(self, values: Int64[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        encoded: Tensor = self.embedding(values)
        return encoded
