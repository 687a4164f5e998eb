"""Other people's checkpoints <-> our pipelines. `load` takes what is ours and what is theirs."""

from pathlib import Path

import torch
from torch import nn

from undiffuse import pipeline
from undiffuse.errors import InputError
from undiffuse.formats import diffusers

__all__ = ["diffusers", "load"]


def load(
    path: str | Path,
    network: nn.Module | None = None,
    device: torch.device | str | None = None,
    step: int | str | None = None,
) -> pipeline.Pipeline:
    """The pipeline of a run folder, or of a folder of the library diffusers. Nothing is unpickled.

    network: a module of your own to fill with a run's weights; device: by default CUDA where there is one;
    step: of a run's snapshot, or "best", in the place of its last weights.

    Raises: InputError for a path that is neither, and where its content cannot be read or has no equal here.
    """
    path = Path(path)
    if (path / "recipe.yaml").is_file():
        return pipeline.load(path, network, device, step)
    if diffusers.is_folder(path):
        if network is not None or step is not None:
            raise InputError(
                f"a network of your own, and snapshots, are of run folders, and {path} is one of diffusers"
            )
        return diffusers.load(path, device)
    try:
        return pipeline.load(path, network, device, step)
    except InputError as error:
        raise InputError(f"{error}; nor a folder of diffusers (with model_index.json or config.json)") from None
