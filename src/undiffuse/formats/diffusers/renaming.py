"""Weights under their names and under ours."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.errors import InputError
from undiffuse.networks import NETWORKS
from undiffuse.registry import build

Names = Callable[[str], list[str]]  # our name of a weight -> theirs; several lie one after another along axis 0 in ours
State = dict[str, Tensor]


def on_paper(network: Mapping[str, Any]) -> nn.Module:
    """The network of a recipe's section, without memory for its weights. Raises: InputError."""
    arguments = {name: value for name, value in network.items() if name != "name"}
    with torch.device("meta"):
        return build("network", NETWORKS, network["name"], arguments)


def to_ours(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Names, source: str) -> State:
    """Their weights under our names, in float32, shaped as `own`; a 1x1 convolution becomes a matrix.

    Raises: InputError naming the first weight that is missing, unexpected or of another shape.
    """
    left, ours = dict(theirs), {}
    for name, like in own.items():
        parts = []
        for their_name in names(name):
            if their_name not in left:
                raise InputError(f"{source} does not fit its config.json: it has no {their_name}")
            parts.append(left.pop(their_name))
        parts = [part.flatten(1) if like.ndim == 2 else part for part in parts]
        shapes = {tuple(part.shape) for part in parts}
        wanted = (len(like) // len(parts), *like.shape[1:])
        if shapes != {wanted}:
            found = next(shape for shape in shapes if shape != wanted)
            raise InputError(f"{source} does not fit its config.json: {names(name)[0]} is {found}, not {wanted}")
        ours[name] = torch.cat(parts).float()
    if left:
        raise InputError(f"{source} does not fit its config.json: it has an unexpected {min(left)}")
    return ours


def to_theirs(ours: Mapping[str, Tensor], names: Names) -> State:
    """Our weights under their names, in float32."""
    theirs: State = {}
    for name, value in ours.items():
        their_names = names(name)
        theirs |= zip(their_names, value.float().chunk(len(their_names)), strict=True)
    return theirs
