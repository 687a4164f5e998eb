"""undiffuse compare: runs side by side, or samplers of one run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import undiffuse
from undiffuse.cli.common import AsJson, GuidanceScale, Overwrite, app, console, parse_integers, shares
from undiffuse.errors import InputError
from undiffuse.files import atomic_path, write_text
from undiffuse.modalities import image
from undiffuse.samplers.names import split_names

STEPS, SAMPLES = "5,10,20,50", 200


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders; with --samplers, one run.")],
    samplers: Annotated[
        str | None, typer.Option(help="Samplers of one run: names with commas between, each with @GRID where wanted.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help=f"Numbers of steps of the samplers; by default {STEPS}.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", help=f"Samples for each sampler and number of steps; by default {SAMPLES}.")
    ] = None,
    guidance: GuidanceScale = None,
    out: Annotated[
        str | None,
        typer.Option(help="A folder; by default compared. With --samplers a PNG; by default compare.png in the run."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs, metric by metric with error bars; or, with --samplers, samplers of one run.

    Of runs it writes comparison.html, comparison.json and pictures, from their evaluation.json. Of samplers, error and
    Frechet distance against network calls, and against seconds: a picture, and the numbers beside it as .json.

    Example: undiffuse compare runs/mnist runs/mnist-edm
    """
    if samplers is None:
        if steps is not None or n is not None or guidance is not None:
            raise InputError("--steps, --n and --guidance are of --samplers: runs are compared as they were evaluated")
        _runs(runs, Path(out or "compared"), overwrite or out is None, as_json)
        return
    if len(runs) != 1:
        raise InputError(f"--samplers compares samplers of one run, not of {len(runs)}")
    _samplers(runs[0], samplers, steps or STEPS, SAMPLES if n is None else n, guidance, out, overwrite, as_json)


def _runs(runs: list[Path], out: Path, overwrite: bool, as_json: bool) -> None:
    from undiffuse.report import protocol
    from undiffuse.report import runs as report

    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "comparison.json").is_file())):
        raise InputError(f"{out} holds other things than a comparison and is not replaced: choose another name")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out} exists already: choose another name, or allow overwriting")
    compared = report.compare(runs)
    path = compared.write(out)
    if as_json:
        typer.echo(json.dumps({**compared.numbers, "out": str(path)}))
        return
    table = Table("", *compared.names, "real", "n")
    for row in compared.lines():
        table.add_row(*row)
    console.print(table)
    for name, facts in compared.numbers["runs"].items():
        console.print(f"{name}: {protocol(facts['samples'])}", soft_wrap=True)
    console.print(path, soft_wrap=True)


def _samplers(
    run: Path, names: str, steps: str, n: int, guidance: float | None, out: str | None, overwrite: bool, as_json: bool
) -> None:
    path = Path(out) if out is not None else run / "compare.png"
    if path.suffix != ".png":
        raise InputError(f"a comparison of samplers is drawn as .png, not {path}")
    beside = path.with_suffix(".json")
    image.check_output(path, overwrite or out is None)
    if out is not None and beside.exists() and not overwrite:
        raise InputError(f"{beside} exists already: choose another name, or allow overwriting")
    counts = parse_integers("--steps", steps, least=1)
    from undiffuse import comparison, plots
    from undiffuse.report import value_of

    contenders = [comparison.Contender(name, count) for name in split_names(names) for count in counts]
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
        table.add_row(row["name"], row["grid"], *counted, value_of(row, "frechet_distance"), f"{row['seconds']:.2f}")
    console.print(table)
    console.print(
        f"{n} samples a row, seeds {numbers['seeds']}, guidance {numbers['guidance']:g}; Frechet distance over "
        f"{numbers['frechet_distance_over']} against {numbers['reference']}, ± one standard error, real "
        f"training images at {numbers['training_to_held_out']:.3f}",
        soft_wrap=True,
    )
    console.print(f"{path}, {beside}", soft_wrap=True)
