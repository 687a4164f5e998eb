"""A class label: one learned vector per class, and one for no class."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError


class Label(Condition):
    """Labels 0..classes-1 as vectors (B, width), added to the embedding of the noise level."""

    feeds = "vector"

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(classes + 1, width)  # the last row is the null

    def read(self, raw: object) -> Int64[Tensor, " batch"]:
        labels = torch.as_tensor(raw).reshape(-1)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"labels must be integers, not {labels.dtype}")
        labels = labels.long()
        # checked on the host only: on a device it would make every training step wait
        if labels.device.type == "cpu" and bool(((labels < 0) | (labels >= self.classes)).any()):
            wrong = labels[(labels < 0) | (labels >= self.classes)][0]
            raise InputError(f"label {int(wrong)} is out of range: the model knows 0 to {self.classes - 1}")
        return labels

    def forward(self, values: Int64[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        encoded: Tensor = self.embedding(values)
        return encoded

    def null(self) -> Float[Tensor, "1 width"]:
        return self.embedding.weight[self.classes :]
