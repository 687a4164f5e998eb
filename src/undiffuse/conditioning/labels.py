"""Several labels at once (attributes, tags): the sum of a learned vector for each that holds."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from undiffuse.conditioning.label import OfClasses, check_range, class_numbers
from undiffuse.errors import InputError


class Labels(OfClasses):
    """Sets of labels as vectors (B, width), added to the embedding of the noise level.

    The null stands for an unknown set; the empty one is known, and a zero vector.
    """

    def read(self, raw: object) -> UInt8[Tensor, "batch classes"]:
        """raw: a list of names or numbers, or a list of such lists; or a tensor or array (classes,) or (B, classes) of
        0 and 1.
        """
        if isinstance(raw, Sequence) and not isinstance(raw, str):
            sets = raw if raw and all(isinstance(one, Sequence) and not isinstance(one, str) for one in raw) else [raw]
            holds = torch.zeros(len(sets), len(self.classes), dtype=torch.uint8)
            for row, one in zip(holds, sets, strict=True):
                if any(not isinstance(label, int | str) or isinstance(label, bool) for label in one):
                    raise InputError(f"a list of labels has names or numbers of classes, not {list(one)!r:.60}")
                if len(set(one)) < len(one):
                    raise InputError(f"{list(one)!r:.60} names a label twice; 0 and 1 for each class are an array")
                numbers = torch.tensor(class_numbers(one, self.classes), dtype=torch.int64)
                check_range(numbers, len(self.classes))
                row[numbers] = 1
            return holds
        if isinstance(raw, str):
            raise InputError(f"several labels are a list, such as [{raw!r}], not a text")
        holds = torch.as_tensor(raw)
        holds = holds[None] if holds.ndim == 1 else holds
        if holds.ndim != 2 or holds.shape[1] != len(self.classes):
            raise InputError(f"labels must have shape (B, {len(self.classes)}), not {tuple(holds.shape)}")
        if holds.device.type == "cpu" and not bool(((holds == 0) | (holds == 1)).all()):
            raise InputError("several labels are given as 0 and 1, one for each class; other numbers were found")
        return holds.to(torch.uint8)

    def forward(self, values: UInt8[Tensor, "batch classes"]) -> Float[Tensor, "batch width"]:
        weight = self.embedding.weight[: len(self.classes)]
        return values.to(weight.dtype) @ weight
