"""Our pipelines as folders of the library diffusers."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import undiffuse
from undiffuse import pipeline, schedule, weights
from undiffuse.conditioning import CONDITIONS
from undiffuse.errors import InputError
from undiffuse.files import atomic_folder, write_text
from undiffuse.formats.diffusers import dit, scheduler, unet
from undiffuse.formats.diffusers.folder import ABOUT, CONFIG, INDEX, REST, SCHEDULER, WEIGHTS
from undiffuse.formats.diffusers.renaming import State, on_paper, to_theirs
from undiffuse.formats.diffusers.time_embedding import told_one_less
from undiffuse.networks import NETWORKS
from undiffuse.samplers import GRIDS

PLACES = {"unet": "unet", "dit": "transformer"}  # our network -> the folder of theirs


def export(run: str | Path, folder: str | Path, overwrite: bool = False) -> tuple[str, ...]:
    """Write a run folder's model as a folder of theirs; returns notes. Raises: InputError as `write`."""
    run = Path(run)
    return write(folder, pipeline.read_spec(run), weights.read(run / "model.safetensors")[0], overwrite)


def write(
    folder: str | Path, spec: Mapping[str, Any], state: Mapping[str, Tensor], overwrite: bool = False
) -> tuple[str, ...]:
    """Write a model, its recipe and its weights, as a folder of theirs, whole or not at all; returns notes.

    A network that was told 1000 t is changed to be told the integer of theirs, exactly. `undiffuse.json` keeps what
    their format has no place for, so that `read` gives back all of it.

    Raises: InputError naming all of the recipe that has no equal there, and for a folder that exists already.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, and the link would be replaced, not what it leads to: name its target")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())) and not (overwrite and _ours(folder)):
        allowed = ", or overwrite" if not overwrite else " (only what was exported here is replaced)"
        raise InputError(f"{folder} exists already: choose another name{allowed}")
    size, conditions = spec["resolved"]["shape"][1:], _conditions(spec)
    refused = _refused(spec, conditions)
    if refused:
        raise InputError(f"diffusers has no equal of {', '.join(refused)}")
    network = _whole(spec, conditions)
    label = next((name for name, section in conditions.items() if section["name"] == "label"), None)
    _check_weights(network, label, state)
    table = None if label is None else state[f"conditioner.parts.{label}.embedding.weight"]
    module = dit if network["name"] == "dit" else unet
    config = module.config(network, size, None if table is None else len(table))
    rest = {name: value for name, value in state.items() if not name.startswith("network.") and value is not table}
    place = PLACES[network["name"]]
    files = {
        f"{place}/{CONFIG}": config,
        f"scheduler/{SCHEDULER}": scheduler.config(spec),
        ABOUT: _about(spec),
    }
    if config["_class_name"] == "UNet2DModel" and not conditions:
        files[INDEX] = {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", files[f"scheduler/{SCHEDULER}"]["_class_name"]],
            "unet": ["diffusers", "UNet2DModel"],
        }
    with atomic_folder(folder) as new:
        for name, content in files.items():
            write_text(new / name, json.dumps(content, indent=2))
        weights.write(new / place / f"{WEIGHTS}.safetensors", _theirs(spec, network, state, table), {})
        if rest:
            weights.write(new / REST, rest, {})
    return _notes(spec, conditions, label, table, rest)


def _ours(folder: Path) -> bool:
    """Whether a folder holds what `write` makes and nothing else, so that it may be replaced."""
    made = {ABOUT, INDEX, REST, f"scheduler/{SCHEDULER}"}
    made |= {f"{place}/{name}" for place in PLACES.values() for name in (CONFIG, f"{WEIGHTS}.safetensors")}
    found = [entry for entry in folder.rglob("*") if not entry.is_dir() or not any(entry.iterdir())]
    return (folder / ABOUT).is_file() and all(entry.relative_to(folder).as_posix() in made for entry in found)


def _conditions(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each condition with what the data decided of it, but those that are told in training alone: their null adds 0."""
    facts, told = spec["resolved"]["conditions"], {kind for kind, made in CONDITIONS.items() if made.told}
    return {
        name: {**facts.get(name, {}), **section}
        for name, section in spec["condition"].items()
        if section["name"] not in told
    }


def _whole(spec: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The network's name and all of its arguments."""
    given = dict(spec["network"])
    parameters = inspect.signature(NETWORKS[given["name"]]).parameters
    found = {name: p.default for name, p in parameters.items()} | {"channels": spec["resolved"]["shape"][0]}
    for section in conditions.values():
        if section["name"] == "embeddings":
            found["context"] = section["size"]
        elif section["name"] == "image":
            found["condition_channels"] = section["channels"]
    return found | given


def _refused(spec: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All of a recipe that has no equal there."""
    found, kinds = scheduler.refused(spec), [section["name"] for section in conditions.values()]
    for name, section in conditions.items():
        whole = section["name"] != "image" or (section.get("factor", 1) == 1 and section.get("of", "data") == "data")
        if section["name"] not in ("label", "embeddings", "image") or not whole or kinds.count(section["name"]) > 1:
            found.append(f"condition.{name}={section['name']!r}")
    if spec["network"]["name"] not in PLACES:
        return [*found, f"network.name={spec['network']['name']!r}"]
    network = _whole(spec, conditions)
    if network["learned_variance"] and network["condition_channels"]:
        found.append("network.learned_variance=True with network.condition_channels")
    if network["name"] == "unet":
        return found + unet.refused(network)
    if "label" not in kinds:
        found.append("no label (a DiT has one there)")
    return found + dit.refused(network, spec["resolved"]["shape"][1:])


def _check_weights(network: Mapping[str, Any], label: str | None, state: Mapping[str, Tensor]) -> None:
    wanted = {f"network.{name}" for name in on_paper(network).state_dict()}
    wanted |= set() if label is None else {f"conditioner.parts.{label}.embedding.weight"}
    differing = wanted ^ {name for name in state if name in wanted or name.startswith("network.")}
    if differing:
        name = min(differing)
        raise InputError(f"the weights do not fit the recipe: they have {'no' if name in wanted else 'also'} {name}")


def _theirs(spec: Mapping[str, Any], network: Mapping[str, Any], state: Mapping[str, Tensor], table: Any) -> State:
    """The weights under their names."""
    ours = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
    if scheduler.label_of(spec) == "time":
        ours["embed.0.weight"] = told_one_less(ours["embed.0.weight"], network["frequency_shift"])
    module = dit if network["name"] == "dit" else unet
    theirs = to_theirs(ours, module.names(network))
    if table is not None:
        theirs[module.LABEL] = table.float()
    return dit.with_copies(theirs, network) if module is dit else theirs


def _about(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What their format has no place for."""
    resolved, sampling = spec["resolved"], dict(spec["sampling"])
    if sampling["grid"] not in GRIDS:
        sampling["grid"] = pipeline.DEFAULTS["grid"]
    return {
        "undiffuse": undiffuse.__version__,
        "name": spec["name"],
        "codec": spec["codec"],
        "condition": spec["condition"],
        "conditions": resolved["conditions"],
        "sampling": sampling,
        "data_std": resolved["data_std"],
        "precision": resolved["precision"],
    }


def _notes(
    spec: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
    label: str | None,
    table: Tensor | None,
    rest: Mapping[str, Tensor],
) -> tuple[str, ...]:
    sampling, found = spec["sampling"], []
    found.append(
        f"the scheduler is a DDIMScheduler; the default sampler, {sampling['sampler']!r} on the grid "
        f"{sampling['grid']!r}, is kept in {ABOUT} alone."
    )
    if sampling["grid"] not in GRIDS:
        found.append(f"the fitted grid {sampling['grid']!r} stays in the run folder.")
    if "trained_betas" in scheduler.config(spec):
        found.append(f"the schedule {spec['schedule']['name']!r} goes out as a table of betas.")
    if table is not None and label is not None and conditions[label].get("optional", True):
        found.append(f"of the {len(table)} classes there, the last, {len(table) - 1}, stands for no class.")
    if rest:
        found.append(f"weights that have no place there are in {REST}: {', '.join(sorted(rest))}.")
    first, arguments = float(1 / scheduler.config(spec)["num_train_timesteps"]), dict(spec["schedule"])
    t_min = spec["range"]["t_min"] or schedule.named(arguments.pop("name"), **arguments).finest_time
    if abs(t_min / first - 1) > 1e-6:
        found.append(
            f"the network was trained from t = {t_min:.4g}; the table, and grids over it, start at {first:.4g}."
        )
    return tuple(found)
