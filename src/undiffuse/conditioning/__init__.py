"""Raw conditions -> tensors that a network takes."""

from undiffuse.conditioning.conditioner import Condition, Conditioner
from undiffuse.conditioning.label import Label
from undiffuse.conditioning.vector import Vector

CONDITIONS: dict[str, type[Condition]] = {"label": Label, "vector": Vector}

__all__ = ["CONDITIONS", "Condition", "Conditioner", "Label", "Vector"]
