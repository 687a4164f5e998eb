"""undiffuse compare: samplers of one run side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import undiffuse
from undiffuse.cli.common import AsJson, GuidanceScale, Overwrite, RunFolder, app, console, parse_integers, shares
from undiffuse.errors import InputError
from undiffuse.files import atomic_path, write_text
from undiffuse.modalities import image
from undiffuse.samplers.names import split_names


@app.command()
def compare(
    run: RunFolder,
    samplers: Annotated[str, typer.Option(help="Names with commas between them, each with @GRID where wanted.")],
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas between them.")] = "5,10,20,50",
    n: Annotated[int, typer.Option("--n", help="Samples for each sampler and number of steps.")] = 200,
    guidance: GuidanceScale = None,
    out: Annotated[str | None, typer.Option(help="A PNG; by default compare.png in the run folder.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare samplers on a trained run: error and Frechet distance against network calls, and against seconds.

    Writes a picture, and the numbers beside it as .json. Those in the run folder are written anew.

    Example: undiffuse compare runs/mnist --samplers "dpm++,DPM++ 2M Karras,adams@angle" --steps 5,10,20
    """
    path = Path(out) if out is not None else run / "compare.png"
    if path.suffix != ".png":
        raise InputError(f"a comparison is drawn as .png, not {path}")
    beside = path.with_suffix(".json")
    image.check_output(path, overwrite or out is None)
    if out is not None and beside.exists() and not overwrite:
        raise InputError(f"{beside} exists already: choose another name, or allow overwriting")
    counts = parse_integers("--steps", steps, least=1)
    from undiffuse import comparison, plots

    contenders = [comparison.Contender(name, count) for name in split_names(samplers) for count in counts]
    comparison.check(undiffuse.load(run), contenders, guidance, n)
    with shares("comparing") as say:
        found = comparison.compare(run, contenders, n, guidance, say)
    numbers, rows = found.numbers, found.rows
    picture = plots.comparison(rows, numbers["training_to_held_out"], numbers["frechet_distance_over"])
    with atomic_path(path) as temporary:
        temporary.write_bytes(plots.to_png(picture))
    write_text(beside, json.dumps(numbers, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps({**numbers, "out": str(path)}))
        return
    table = Table("sampler", "grid")
    for column in ("steps", "calls", "error", "Frechet", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        error = "-" if row["error"] is None else f"{row['error']:.4f}"
        counted = (str(row["steps"]), f"{row['evaluations']:g}", error)
        table.add_row(row["name"], row["grid"], *counted, f"{row['frechet_distance']:.3f}", f"{row['seconds']:.2f}")
    console.print(table)
    console.print(
        f"{n} samples a row, guidance {numbers['guidance']:g}; Frechet distance over "
        f"{numbers['frechet_distance_over']}, real training images at {numbers['training_to_held_out']:.3f}",
        soft_wrap=True,
    )
    console.print(f"{path}, {beside}", soft_wrap=True)
