"""undiffuse train."""

import contextlib
import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse import config, kernels, recipes
from undiffuse.cli.common import AsJson, app, console, duration, progress_bar
from undiffuse.data.pictures import processors
from undiffuse.errors import InputError

if TYPE_CHECKING:
    import torch

    from undiffuse.classifying import ClassifierExperiment
    from undiffuse.experiment import Experiment

HINTED = 0.1  # share of the time above which waiting is worth doing something about
HINTED_AFTER = 60  # seconds, in which the workers have started


def fast(resolved: dict[str, Any], device: "torch.device") -> str:
    """The fast settings of a run, in words, and why there are no kernels where there could be."""
    ways = {"compile": "compiled", "kernels": "native kernels"}
    found = [str(resolved["precision"]), *(word for name, word in ways.items() if resolved.get(name))]
    if device.type == "cpu" and len(found) == 1 and kernels.missing():
        found.append(f"no native kernels ({kernels.missing()})")
    return ", ".join(found)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path ending in .yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Show the whole recipe and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; the same command again goes on where it stopped.

    Example: undiffuse train mnist data.path=mnist.npz training.minutes=10 run=runs/mnist
    """
    changes = list(overrides or [])
    named = [change.partition("=")[2] for change in changes if change.startswith("run=")]
    chosen = recipes.named(recipe).changed([change for change in changes if not change.startswith("run=")])
    if show:
        typer.echo(config.to_yaml(config.plain(chosen)), nl=False)
        return
    if named and not named[-1]:
        raise InputError("run= needs the path of a run folder")
    folder = Path(named[-1] if named else f"runs/{chosen.name}")
    summary = train_run(chosen, folder)
    if as_json:
        typer.echo(json.dumps(summary))


def waiting(share: float, in_memory: bool, seconds: float) -> str:
    """What share of a session was spent waiting for data, and what to do about much of it."""
    line = f"{100 * share:.1f} % of the time was spent waiting for data"
    if share <= HINTED or in_memory or seconds < HINTED_AFTER:
        return line
    return (
        f"{line}: smaller files, data.workers={processors()} (one a processor) or, where they fit, data.memory=always "
        "make it less"
    )


def train_run(recipe: config.Recipe, folder: Path) -> dict[str, Any]:
    """Train a recipe in a folder. Returns what was done."""
    from undiffuse.experiment import Experiment

    return carried_out(Experiment(recipe, folder), recipe.name)


def carried_out(experiment: "Experiment | ClassifierExperiment", name: str) -> dict[str, Any]:
    """What was done: an experiment trained to its end, with a progress bar; SIGINT and SIGTERM save and end."""
    from undiffuse.experiment import parameters

    run, state, resolved = experiment.run, experiment.state, experiment.spec["resolved"]
    in_memory = experiment.split.train.in_memory  # which may differ between sessions
    skipped = experiment.split.train.skipped  # of the whole source
    if skipped:
        console.print(f"skipped {len(skipped)} corrupt files: {', '.join(skipped)}", soft_wrap=True)
    if experiment.finished:
        console.print(f"{experiment.folder} is trained already: {state.step:,} steps", soft_wrap=True)
    else:
        size = "x".join(map(str, resolved["shape"]))
        start = f"going on from step {state.step:,}" if experiment.resumed else "training"
        console.print(
            f"{start}: {name}, {resolved['train_samples']:,} samples of {size}"
            f"{'' if in_memory else ' decoded from files'}, "
            f"{parameters(state.model):,} parameters, {fast(experiment.settings, experiment.device)}, "
            f"in {experiment.folder}"
        )
    caught: list[int] = []
    began = time.monotonic()

    def stop(number: int, frame: FrameType | None) -> None:
        if caught:  # asked twice: do not wait for the step at hand
            raise KeyboardInterrupt
        caught.append(number)
        run.stop()

    event = None
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # closed, because an interrupt may leave it half-way, and processes that decode with it
        with progress_bar() as progress, contextlib.closing(experiment.train()) as events:
            task = progress.add_task("training", total=None, note="")
            for event in events if not experiment.finished else ():
                progress.update(
                    task,
                    total=event.total,
                    completed=event.step,
                    note=f"loss {event.loss:.4f}  {event.images_per_second:,.0f} images/s  "
                    + duration(event.seconds_left),
                )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if event:
        console.print(waiting(run.data_share, in_memory, time.monotonic() - began), soft_wrap=True)
    if caught:
        console.print(f"stopped and saved at step {state.step:,}: the same command goes on from there")
        raise typer.Exit(128 + caught[0])
    return {
        "run": str(experiment.folder),
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "loss": event.loss if event else None,
        "data_share": round(run.data_share, 4),
        "images_per_second": round(state.step * run.plan.batch_size / max(state.seconds, 1e-9), 1),
    }
