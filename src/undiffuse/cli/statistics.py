"""undiffuse statistics."""

import json
from pathlib import Path
from typing import Annotated

import typer

import undiffuse
from undiffuse.cli.common import AsJson, Overwrite, RunFolder, app, console, shares
from undiffuse.errors import InputError, unknown

PARTS = ("held-out", "train")


@app.command()
def statistics(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="An .npz of mu, sigma and n, as the field shares them.")] = Path(
        "statistics.npz"
    ),
    features: Annotated[str, typer.Option(help="inception, dinov2, clip, pixels, embedded, or a file.")] = "inception",
    part: Annotated[str, typer.Option(help="Of the run's data: held-out or train.")] = "held-out",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the mean and covariance of features of a run's real images, to measure other runs against.

    Example: undiffuse statistics runs/photos --features inception --part train --out photos.npz
    """
    if out.suffix != ".npz":
        raise InputError(f"statistics are written as .npz, not as {out}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already: choose another name, or allow overwriting")
    if part not in PARTS:
        raise unknown("part of the data", part, PARTS)
    from undiffuse.evaluation import judged
    from undiffuse.examples import centred
    from undiffuse.experiment import load_experiment_data
    from undiffuse.judge import EMBEDDED, Judge
    from undiffuse.metrics import features as networks
    from undiffuse.metrics import statistics as stored
    from undiffuse.metrics.seen import BATCH, look

    model = undiffuse.load(run)
    split = load_experiment_data(run)[1]
    if features in (EMBEDDED, "classifier"):
        network = Judge(split, model.shape, judged(model)).features
    else:
        network = networks.named(features)
    images = split.held_out if part == "held-out" else split.train
    slices = (slice(first, first + BATCH) for first in range(0, len(images), BATCH))
    with shares("statistics") as say:
        seen = look(
            network,
            (centred(images, model.shape, rows) for rows in slices),
            keep=False,
            say=lambda done: say(f"{done:,} images", done / len(images)),
        )
    stored.export(seen, out)
    facts = {"out": str(out), "features": seen.name, "n": seen.n, "data": images.name, "part": part}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        console.print(f"{seen.n:,} {part} images of {images.name} through {seen.name}: {out}", soft_wrap=True)
