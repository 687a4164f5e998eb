"""From a whole recipe to an untrained pipeline."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from undiffuse import prediction, schedule
from undiffuse.codecs import CODECS
from undiffuse.conditioning import CONDITIONS, Conditioner
from undiffuse.denoiser import Denoiser
from undiffuse.errors import InputError, unknown
from undiffuse.networks import NETWORKS
from undiffuse.pipeline.base import Pipeline
from undiffuse.registry import build


def assemble(spec: Mapping[str, Any], network: nn.Module | None = None) -> Pipeline:
    """An untrained pipeline from a whole recipe: plain names and numbers, as a run folder's recipe.yaml holds them.

    spec["resolved"] says what the data decided: shape (C, H, W), data_std, and the facts of each condition.
    """
    resolved = spec["resolved"]

    def parts(section: str) -> tuple[str, dict[str, Any]]:
        arguments = dict(spec[section])
        return arguments.pop("name"), arguments

    conditions = _conditions(spec)
    made = {
        name: build("condition", CONDITIONS, kind, arguments)
        for name, (kind, arguments) in conditions.items()
        if CONDITIONS[kind].feeds != "vector"
    }
    if network is None:
        name, arguments = parts("network")
        for key, decided in ({"condition_channels": 0, "context": None} | _inputs(made)).items():
            if key in arguments and arguments[key] != decided:
                raise InputError(
                    f"network.{key}={arguments[key]!r} is decided by the conditions, which make it {decided!r}"
                )
        network = build("network", NETWORKS, name, {"channels": resolved["shape"][0]} | _inputs(made) | arguments)
    if len(made) < len(conditions) and not hasattr(network, "embedding_width"):
        raise InputError(
            f"a network that takes the conditions {', '.join(conditions)} needs an attribute embedding_width, "
            "the width of the `vector` that it is given"
        )
    for name, (kind, arguments) in conditions.items():
        if name not in made:
            if "width" in arguments:
                raise InputError(
                    f"condition.{name}.width={arguments['width']!r} is decided by the network: leave it out"
                )
            made[name] = build("condition", CONDITIONS, kind, {"width": network.embedding_width} | arguments)
    conditioner = Conditioner({name: made[name] for name in conditions}) if conditions else None
    name, arguments = parts("prediction")
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if name == "edm":
        arguments = {"data_std": resolved["data_std"]} | arguments
    noise_schedule, schedule_arguments = parts("schedule")
    if noise_schedule == "learned":  # under which a time means now this level, now that
        arguments = {"label": "log-snr"} | arguments
    denoiser = Denoiser(
        network,
        schedule.named(noise_schedule, **schedule_arguments),
        prediction.named(name, **arguments),
        conditioner=conditioner,
        t_min=spec["range"]["t_min"],
        t_max=spec["range"]["t_max"],
        data_std=resolved["data_std"],
        precision=torch.bfloat16 if resolved["precision"] == "bfloat16" else None,
    )
    codec = build("codec", CODECS, spec["codec"], {})
    return Pipeline(denoiser, codec, resolved["shape"], spec["sampling"], spec["name"])


def _conditions(spec: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The kind of each condition, and its arguments: those of the recipe, then what the data decided."""
    found = {}
    for name, section in spec["condition"].items():
        arguments = spec["resolved"]["conditions"].get(name, {}) | section
        kind = arguments.pop("name")
        if kind not in CONDITIONS:
            raise unknown("kind of condition", kind, CONDITIONS)
        found[name] = (kind, arguments)
    return found


def _inputs(made: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a network needs to take what these conditions feed beside its vector."""
    channels = sum(part.channels for part in made.values() if part.feeds == "image")
    contexts = sorted({part.context for part in made.values() if part.feeds == "tokens"})
    if len(contexts) > 1:
        raise InputError(f"conditions of tokens must be of one width, not {' and '.join(map(str, contexts))}")
    return ({"condition_channels": channels} if channels else {}) | ({"context": contexts[0]} if contexts else {})
