"""undiffuse train-classifier."""

import json
from typing import Annotated

import typer

from undiffuse.cli.common import AsJson, RunFolder, app, console
from undiffuse.cli.train import carried_out


@app.command()
def train_classifier(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to `network` and `training`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a classifier that knows noise on a run's data, for `sample --classifier`; again, it goes on.

    Example: undiffuse train-classifier runs/digits training.steps=2000
    """
    from undiffuse.classifying import ClassifierExperiment, ClassifierRecipe

    experiment = ClassifierExperiment(run, ClassifierRecipe().changed(overrides or []))
    summary = carried_out(experiment, f"a classifier of {len(experiment.state.model.classes)} classes")
    summary["accuracy"] = experiment.accuracy()
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        shares = "  ".join(f"{share:.1%} at t = {t}" for t, share in summary["accuracy"].items())
        console.print(f"held-out accuracy: {shares}", soft_wrap=True)
