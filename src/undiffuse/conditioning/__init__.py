"""Raw conditions -> tensors that a network takes."""

from undiffuse.conditioning.augmentation import Augmentation
from undiffuse.conditioning.conditioner import Condition, Conditioner
from undiffuse.conditioning.image import EncodedImage, Image
from undiffuse.conditioning.label import Label
from undiffuse.conditioning.labels import Labels
from undiffuse.conditioning.mask import Mask
from undiffuse.conditioning.tokens import Embeddings, Tokens
from undiffuse.conditioning.vector import Vector

CONDITIONS: dict[str, type[Condition]] = {
    "label": Label,
    "labels": Labels,
    "vector": Vector,
    "image": Image,
    "encoded-image": EncodedImage,
    "mask": Mask,
    "tokens": Tokens,
    "embeddings": Embeddings,
    "augmentation": Augmentation,
}

__all__ = [
    "CONDITIONS",
    "Augmentation",
    "Condition",
    "Conditioner",
    "Embeddings",
    "EncodedImage",
    "Image",
    "Label",
    "Labels",
    "Mask",
    "Tokens",
    "Vector",
]  # fmt: skip
