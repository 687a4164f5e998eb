"""The pipeline of a run folder: its recipe and its weights. Nothing is unpickled."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from undiffuse.errors import InputError
from undiffuse.pipeline.assemble import assemble
from undiffuse.pipeline.base import Pipeline
from undiffuse.samplers import stored
from undiffuse.weights import fill, read

BEST = "best.safetensors"  # the averaged weights that measured best


def read_spec(run: Path) -> dict[str, Any]:
    """The whole recipe of a run folder. Raises: InputError for a folder that is none."""
    path = run / "recipe.yaml"
    if not path.is_file():
        near = sorted(p.parent.name for p in run.parent.glob("*/recipe.yaml")) if run.parent.is_dir() else []
        hint = f"; runs there: {', '.join(near[:8])}" if near else ""
        raise InputError(f"{run} is not a run folder (it has no recipe.yaml){hint}")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(spec, dict) or not isinstance(spec.get("resolved"), dict):
            raise InputError(f"{path} is not a whole recipe: it has no section 'resolved'")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return spec


def read_model_spec(run: Path) -> dict[str, Any]:
    """The whole recipe of a model's run. Raises: InputError for the folder of a classifier, too."""
    spec = read_spec(run)
    if "classes" in spec["resolved"] and "condition" not in spec:
        raise InputError(f"{run} is the folder of a classifier: give the run it was trained for, {run.parent}")
    return spec


def snapshots(run: Path) -> list[int]:
    """The steps whose averaged weights a run kept."""
    steps = (found.stem.removeprefix("step-") for found in (run / "snapshots").glob("step-*.safetensors"))
    return sorted(int(step) for step in steps if step.isdecimal())


def _weights(run: Path, step: int | str | None) -> Path:
    """The file of averaged weights: the last, the best, or those of a step. Raises: InputError where there is none."""
    if step is None:
        path = run / "model.safetensors"
        if not path.is_file():
            raise InputError(f"{run} has no model.safetensors yet: train longer, to its first checkpoint")
        return path
    if step == "best":
        path = run / BEST
        if not path.is_file():
            raise InputError(f"{run} kept no best weights: train with training.best=validation_loss, or a metric")
        return path
    if not isinstance(step, int) or step < 0:
        raise InputError(f"the step of a snapshot is a whole number, or 'best', not {step!r}")
    path = run / "snapshots" / f"step-{step:08d}.safetensors"
    if not path.is_file():
        kept = snapshots(run)
        there = f"kept are {', '.join(map(str, kept))}" if kept else "train with training.snapshot_every=..."
        raise InputError(f"{run} has no snapshot of step {step}: {there}")
    return path


def load(
    run: str | Path,
    network: nn.Module | None = None,
    device: torch.device | str | None = None,
    step: int | str | None = None,
) -> Pipeline:
    """The pipeline of a run folder: its recipe, its averaged weights, its fitted time grids. Nothing is unpickled.

    step: of a snapshot, an early state of the model (`training.snapshot_every`), or "best", the one that measured best
    (`training.best`), in the place of the last one.
    network: a module of your own to fill with the weights, in the place of the recipe's.
    device: by default CUDA where there is one, else the CPU.

    Raises: InputError for a folder without a recipe or weights, truncated weights, weights of another
        model.
    """
    run = Path(run)
    spec = read_model_spec(run)
    try:
        pipeline = assemble(spec, network)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{run / 'recipe.yaml'} is not a recipe of this version: {error!r}") from error
    path = _weights(run, step)
    fill(pipeline.denoiser, read(path)[0], path)
    pipeline.grids = stored.Folder(run)
    pipeline.denoiser.requires_grad_(False).eval()
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
