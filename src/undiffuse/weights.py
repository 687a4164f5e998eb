"""Tensors on disk: safetensors with a JSON description in the header. Nothing is ever unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from undiffuse.errors import InputError
from undiffuse.files import atomic_path

FINGERPRINTED = 1024  # numbers of each tensor: trained weights differ everywhere, and large models stay quick


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Tensors and a JSON description as one safetensors file, written atomically."""
    with atomic_path(path) as temporary:
        try:
            # clone: tied or channels-last storage is laid out anew
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
                temporary,
                {"undiffuse": json.dumps(about)},
            )
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file and its description. Raises: InputError for a missing or truncated file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("undiffuse", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is truncated or not a safetensors file ({error}): delete it to go on without"
        ) from error


def fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Fill `module`. Raises: InputError naming the first weight that is missing, unexpected or of another shape."""
    own = module.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        raise InputError(f"{path} does not fit this model: it has {'no' if name in own else 'an unexpected'} {name}")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise InputError(
                f"{path} does not fit this model: {name} has shape {tuple(weights[name].shape)} "
                f"there and {tuple(value.shape)} here"
            )
    module.load_state_dict(weights)


def description(path: Path) -> dict[str, Any]:
    """The description of a safetensors file alone; {} where there is no such file, or it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("undiffuse", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits that tell the weights of a module from others, on any device: a part of a SHA-256."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        first = value.detach().flatten()[:FINGERPRINTED].cpu().contiguous()
        digest.update(name.encode() + first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
