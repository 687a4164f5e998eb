"""undiffuse info."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import undiffuse
from undiffuse import pipeline, recipes
from undiffuse.cli.common import AsJson, app
from undiffuse.cli.request import read_facts
from undiffuse.conditioning import Condition
from undiffuse.weights import description


@app.command()
def info(
    run: Annotated[
        Path | None, typer.Argument(help="A run, or a picture, an .npz or a folder of pictures; without: what is there")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run is, how a picture was made, or what is installed and known.

    Example: undiffuse info runs/demo --json
    """
    facts: dict[str, Any]
    if run is None:
        from undiffuse import guidance, networks, prediction, samplers
        from undiffuse.schedule import SCHEDULES

        facts = {
            "undiffuse": undiffuse.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"cpu, {torch.get_num_threads()} threads",
            "recipes": list(recipes.RECIPES),
            "schedules": list(SCHEDULES),
            "predictions": list(prediction.PREDICTIONS),
            "networks": list(networks.NETWORKS),
            "classifiers": list(networks.CLASSIFIERS),
            "samplers": list(samplers.SAMPLERS),
            "grids": list(samplers.GRIDS),
            "guidances": list(guidance.GUIDANCES),
        }
    elif run.is_file():
        facts = {"picture": str(run), **read_facts(run)}
    elif pictures := _pictures(run):
        facts = _of_pictures(run, pictures)
    else:
        facts = _of_model(run)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key:>12}  {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _pictures(path: Path) -> list[Path]:
    """The PNGs of a folder that is no model's."""
    model = any((path / name).exists() for name in ("recipe.yaml", "model_index.json", "config.json"))
    return [] if model else sorted(path.glob("*.png"))


def _of_pictures(folder: Path, pictures: list[Path]) -> dict[str, Any]:
    """What is recorded in the pictures of a folder: once where it is the same in all, else the values in turn.

    Their numbers are a range where none is missing.
    """
    each = [read_facts(picture) for picture in pictures]
    facts: dict[str, Any] = {"pictures": str(folder), "files": len(pictures)}
    for name in dict.fromkeys(name for found in each for name in found):
        values = [found.get(name) for found in each]
        facts[name] = values[0] if all(value == values[0] for value in values) else values
    if facts.get("index") == list(range(len(each))) and len(each) > 1:
        facts["index"] = f"0-{len(each) - 1}"
    return facts


def _of_part(part: Condition) -> str:
    """What its values are."""
    classes = getattr(part, "classes", None)
    facts = {"size": getattr(part, "size", None), "length": getattr(part, "length", None)}
    facts |= {"classes": ", ".join(classes[:20]) if isinstance(classes, tuple) else classes}
    facts |= {"channels": getattr(part, "channels", None) if classes is None else None}
    return "".join(f", {name} {value}" for name, value in facts.items() if value is not None)


def _of_model(path: Path) -> dict[str, Any]:
    """What a run folder, or a checkpoint of another library, is."""
    from undiffuse.classifying import FOLDER
    from undiffuse.experiment import parameters
    from undiffuse.training import read_metrics

    model = undiffuse.load(path)
    facts = {
        "run": str(path),
        "recipe": model.name,
        "shape": list(model.shape),
        "conditions": [f"{name} ({type(part).__name__}{_of_part(part)})" for name, part in model.parts.items()],
        "classes": list(model.classes),
        "parameters": parameters(model.denoiser),
        "schedule": f"{model.denoiser.schedule!r:.200}",
        "prediction": repr(model.denoiser.prediction),
        "range": [model.denoiser.t_min, model.denoiser.t_max],
        "sampling": model.sampling,
    }
    if not (path / "recipe.yaml").is_file():
        return facts
    resolved, log = pipeline.read_spec(path)["resolved"], read_metrics(path)
    kept = pipeline.snapshots(path)
    facts |= {"snapshots": kept} if kept else {}
    best = description(path / pipeline.BEST)
    facts |= {"best": f"step {best['step']}, {best['metric']} {best['value']:g}"} if best else {}
    facts |= {"classifier": str(path / FOLDER)} if (path / FOLDER / "model.safetensors").is_file() else {}
    return facts | {
        "steps": max((line["step"] for line in log), default=0),
        "seconds": max((line.get("seconds", 0.0) for line in log), default=0.0),
        **{name: resolved[name] for name in ("device", "precision", "compile", "kernels") if name in resolved},
        "undiffuse": resolved["undiffuse"],
    }
