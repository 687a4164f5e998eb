"""undiffuse info."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import undiffuse
from undiffuse import pipeline, recipes
from undiffuse.cli.common import AsJson, app


@app.command()
def info(
    run: Annotated[Path | None, typer.Argument(help="A run folder; without one, the installation.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run is, or what is installed and known.

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
            "samplers": list(samplers.SAMPLERS),
            "grids": list(samplers.GRIDS),
            "guidances": list(guidance.GUIDANCES),
        }
    else:
        from undiffuse.experiment import parameters
        from undiffuse.training import read_metrics

        spec = pipeline.read_spec(run)
        model, log = undiffuse.load(run), read_metrics(run)
        facts = {
            "run": str(run),
            "recipe": spec["name"],
            "shape": list(model.shape),
            "classes": list(model.classes),
            "parameters": parameters(model.denoiser),
            "schedule": repr(model.denoiser.schedule),
            "prediction": repr(model.denoiser.prediction),
            "range": [model.denoiser.t_min, model.denoiser.t_max],
            "sampling": model.sampling,
            "steps": max((line["step"] for line in log), default=0),
            "seconds": max((line.get("seconds", 0.0) for line in log), default=0.0),
            "precision": spec["resolved"]["precision"],
            "undiffuse": spec["resolved"]["undiffuse"],
        }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key:>12}  {', '.join(map(str, value)) if isinstance(value, list) else value}")
