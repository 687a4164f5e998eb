"""undiffuse demo."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from undiffuse import recipes
from undiffuse.cli.common import AsJson, app, console
from undiffuse.cli.evaluate import evaluate_run, print_three
from undiffuse.cli.train import train_run
from undiffuse.errors import InputError

DEMO_SECONDS = 150.0
DEMO_TRAINING_SHARE = 0.5  # of the demo's seconds; the rest is for starting, evaluating and drawing


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Run time of the whole: training takes half.")] = DEMO_SECONDS,
    run: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/demo, or runs/demo-SECONDS.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, sample and evaluate on the embedded digits; open runs/demo/report.html afterwards.

    Example: undiffuse demo --seconds 60
    """
    began = time.monotonic()
    if not seconds >= 20:
        raise InputError(f"--seconds must be at least 20, not {seconds:g}")
    minutes = round(seconds * DEMO_TRAINING_SHARE / 60, 4)
    run = run or Path("runs/demo" if seconds == DEMO_SECONDS else f"runs/demo-{seconds:g}")
    train_run(recipes.named("demo").changed([f"training.minutes={minutes}"]), run)
    n = int(min(500, max(100, 5 * seconds)))
    # the rest is to draw and write the report, and for a machine that slows down
    numbers, path = evaluate_run(run, n, 200, deadline=began + 0.92 * seconds)
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        print_three(numbers, path)
        console.print(f"done in {time.monotonic() - began:.0f} s")
