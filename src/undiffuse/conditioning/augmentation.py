"""What was done to a training picture, told to the network so that samples need not show it."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.conditioning.conditioner import Condition
from undiffuse.errors import InputError

NUMBERS = 9  # of `undiffuse.data.Geometric`


class Augmentation(Condition):
    """The 9 numbers that describe a geometric augmentation, by a linear map without bias to (B, width).

    The null is the zero vector: nothing was done. It is what the network is told in sampling, so what it learns of
    augmented pictures does not leak into samples.

    probability: of each kind of transform, in training.

    Raises: InputError for a probability outside [0, 1].

    Reference: Karras et al. 2022, section 5 and appendix F.2.
    """

    feeds = "vector"
    told: ClassVar[bool] = True

    def __init__(self, width: int, probability: float = 0.12) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise InputError(f"the probability of an augmentation must be in [0, 1], not {probability}")
        self.probability = probability
        self.project = nn.Linear(NUMBERS, width, bias=False)
        self.register_buffer("nothing", torch.zeros(1, width), persistent=False)

    def read(self, raw: object) -> Float[Tensor, "batch 9"]:
        """raw: (9,) or (B, 9), as `undiffuse.data.Geometric.describe` gives them."""
        values = torch.as_tensor(raw, dtype=torch.float32)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != NUMBERS:
            raise InputError(f"an augmentation is described by (B, {NUMBERS}) numbers, not {tuple(values.shape)}")
        return values

    def forward(self, values: Float[Tensor, "batch 9"]) -> Float[Tensor, "batch width"]:
        encoded: Tensor = self.project(values)
        return encoded

    def null(self) -> Float[Tensor, "1 width"]:
        nothing = self.nothing
        assert isinstance(nothing, Tensor)
        return nothing
