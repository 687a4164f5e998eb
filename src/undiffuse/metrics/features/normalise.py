"""The range of pixels that networks are made for."""

import torch
from jaxtyping import Float32
from torch import Tensor

from undiffuse.errors import unknown

# mean and standard deviation of each of the channels red, green, blue in [0, 1], or one pair for any channel
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "levels": ((0.0,), (1 / 255,)),
    "unit": ((0.0,), (1.0,)),
    "symmetric": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def normalised(x: Float32[Tensor, "n c h w"], how: str) -> Float32[Tensor, "n c h w"]:
    """(x / 255 - mean) / deviation, channel by channel: `levels` gives [0, 255], `unit` [0, 1], `symmetric` [-1, 1].

    `imagenet` and `clip` are those of torchvision's and of OpenAI's networks, for three channels.

    Raises: InputError for an unknown name.
    """
    if how not in NORMALISATIONS:
        raise unknown("normalisation", how, NORMALISATIONS)
    mean, deviation = (torch.tensor(values, device=x.device)[:, None, None] for values in NORMALISATIONS[how])
    return (x / 255 - mean) / deviation
