"""Published architectures by name: the arguments that build them here, and how large their papers say they are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from undiffuse.networks.dit import DiT
from undiffuse.networks.unet import UNet


class Published(NamedTuple):
    """An architecture, and its published count of parameters.

    network, arguments: the class and what it is made with. classes: rows of a table of labels that the count includes,
    0 for none; positions: rows of a table of fixed positions that it includes, which here are computed and are no
    parameters; both tables have the embedding's width. millions: the count. source: the paper.
    """

    network: type[nn.Module]
    arguments: Mapping[str, Any]
    classes: int
    positions: int
    millions: float
    source: str


def _dit(width: int, depth: int, heads: int, millions: float) -> Published:
    sizes = {"channels": 4, "width": width, "depth": depth, "heads": heads, "patch": 2, "size": 32}
    # a thousand classes and none; 16 x 16 patches
    return Published(DiT, sizes | {"learned_variance": True}, 1001, 256, millions, "Peebles & Xie 2023")


PUBLISHED: dict[str, Published] = {
    "ddpm-cifar10": Published(
        UNet,
        {
            "channels": 3,
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 2,
            "attention": (False, True, False, False),
            "middle_attention": True,
            "heads": 1,
            "modulation": "add",
            "resample": "conv",
            "pad_end": True,
            "epsilon": 1e-6,
            "frequency_shift": 1,
        },
        0,
        0,
        35.7,
        "Ho et al. 2020, appendix B",
    ),
    "adm-64": Published(
        UNet,
        {
            "channels": 3,
            "width": 192,
            "multipliers": (1, 2, 3, 4),
            "blocks": 3,
            "attention": (False, True, True, True),
            "head_width": 64,
            "modulation": "scale-shift",
            "resample": "residual",
            "learned_variance": True,
        },
        1000,
        0,
        296.0,
        "Dhariwal & Nichol 2021",
    ),
    "dit-s/2": _dit(384, 12, 6, 33.0),
    "dit-b/2": _dit(768, 12, 12, 130.5),
    "dit-l/2": _dit(1024, 24, 16, 458.1),
    "dit-xl/2": _dit(1152, 28, 16, 675.1),
    "stable-diffusion": Published(
        UNet,
        {
            "channels": 4,
            "width": 320,
            "multipliers": (1, 2, 4, 4),
            "blocks": 2,
            "attention": (True, True, True, False),
            "middle_attention": True,
            "context": 768,
            "heads": 8,
            "modulation": "add",
            "resample": "conv",
        },
        0,
        0,
        859.5,
        "Rombach et al. 2022, the published v1 weights",
    ),
}


def parameters(name: str) -> int:
    """How many numbers the architecture has, with the tables that its published count includes; allocates nothing.

    Raises: ValueError for a name that is not in PUBLISHED.
    """
    if name not in PUBLISHED:
        raise ValueError(f"the published architectures are {', '.join(PUBLISHED)}, not {name!r}")
    published = PUBLISHED[name]
    with torch.device("meta"):
        network: Any = published.network(**published.arguments)
    count: int = sum(parameter.numel() for parameter in network.parameters())
    tables: int = (published.classes + published.positions) * network.embedding_width
    return count + tables
