"""A folder of theirs on disk: where its configurations and weights lie. Nothing is unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from undiffuse import weights
from undiffuse.errors import InputError
from undiffuse.formats.diffusers.renaming import State

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
ABOUT, REST = "undiffuse.json", "undiffuse.safetensors"  # ours, beside theirs: what their format has no place for
NETWORKS = ("unet", "transformer")
WEIGHTS = "diffusion_pytorch_model"


class Opened(NamedTuple):
    """The configurations of a folder. network: where its weights lie; others: what else the folder holds, by name."""

    network: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]
    pipeline: dict[str, Any]
    about: dict[str, Any]
    others: dict[str, str]


def is_folder(path: str | Path) -> bool:
    """Whether this is a folder of diffusers: a pipeline, or a network alone."""
    return any((Path(path) / name).is_file() for name in (INDEX, CONFIG, *(f"{name}/{CONFIG}" for name in NETWORKS)))


def open_folder(folder: Path) -> Opened:
    """Find and read the configurations of a pipeline, or of a network alone. Raises: InputError."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    network = next((at for at in (*(folder / n for n in NETWORKS), folder) if (at / CONFIG).is_file()), None)
    if network is None:
        raise InputError(f"{folder} holds no network of diffusers: no {CONFIG} in it, nor in unet/ or transformer/")
    places = [at / "scheduler" / SCHEDULER for at in (folder, network.parent)]
    places.insert(1, network / SCHEDULER)
    scheduler = next((place for place in places if place.is_file()), None)
    if scheduler is None:
        raise InputError(
            f"{network} has no {SCHEDULER}, which says how the network was trained; looked for "
            f"{', '.join(map(str, dict.fromkeys(places)))}"
        )
    about = read_json(network.parent / ABOUT) if (network.parent / ABOUT).is_file() else {}
    return Opened(network, read_json(network / CONFIG), read_json(scheduler), index, about, _others(folder, index))


def _others(folder: Path, index: Mapping[str, Any]) -> dict[str, str]:
    """The components that are neither network nor scheduler -> their classes."""
    found = {
        name: str(value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] and name not in (*NETWORKS, "scheduler")
    }
    beside = {at.name for at in folder.iterdir() if (at / CONFIG).is_file()} - {*found, *NETWORKS, "scheduler"}
    return found | {name: str(read_json(folder / name / CONFIG).get("_class_name", "?")) for name in sorted(beside)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(found).__name__}")
    return found


def read_weights(network: Path) -> State:
    """The weights of a network: one safetensors file, or several with an index; of full precision where there is a
    choice.

    Raises: InputError for truncated files, parts that are missing, and pickles.
    """
    for variant in ("", ".fp16"):
        if (whole := network / f"{WEIGHTS}{variant}.safetensors").is_file():
            return read_tensors(whole)
        for index in (f"{WEIGHTS}{variant}.safetensors.index.json", f"{WEIGHTS}.safetensors.index{variant}.json"):
            if (network / index).is_file():
                return _sharded(network / index)
    pickles = sorted(path.name for path in network.glob("*.bin"))
    if pickles:
        raise InputError(
            f"{network} holds its weights as a pickle ({pickles[0]}), which may run code and is not opened: save them "
            "as safetensors with `from_pretrained(...).save_pretrained(...)` of diffusers, if you trust their source"
        )
    raise InputError(f"{network} has no {WEIGHTS}.safetensors")


def _sharded(index: Path) -> State:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise InputError(f"{index} has no weight_map of names and files")
    found: State = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part:
            raise InputError(f"{index} names a file elsewhere: {part}")
        found |= read_tensors(index.parent / part)
    return found


def read_tensors(path: Path) -> State:
    """The tensors of a safetensors file. Raises: InputError."""
    try:
        return weights.read(path)[0]
    except InputError as error:
        what = "is truncated or not a safetensors file" if path.is_file() else "does not exist"
        raise InputError(f"{path} {what}") from error
