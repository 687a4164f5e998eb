"""undiffuse evaluate."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TaskID
from rich.table import Table

import undiffuse
from undiffuse.cli.common import (
    AsJson,
    CompileNetwork,
    GridName,
    GuidanceScale,
    RunFolder,
    SamplerName,
    app,
    console,
    progress_bar,
)
from undiffuse.errors import InputError


def evaluate_run(
    run: Path, n: int, sweep_n: int, deadline: float | None = None, **how: Any
) -> tuple[dict[str, Any], Path]:
    """Evaluate with a progress bar, and write the report. Returns the numbers and the report's path."""
    from undiffuse import evaluation, report

    report.check(run)
    with progress_bar() as progress:
        task: TaskID = progress.add_task("evaluating", total=1.0, note="")

        def say(what: str, share: float) -> None:
            progress.update(task, completed=share, note=what)

        result = evaluation.evaluate(run, n=n, sweep_n=sweep_n, deadline=deadline, say=say, **how)
        path = report.write(run, result)
        progress.update(task, completed=1.0, note="")
    return result.numbers, path


def print_three(numbers: dict[str, Any], path: Path) -> None:
    from undiffuse.report import three_numbers

    for value, what in three_numbers(numbers):
        console.print(f"  {value:>8}  {what}", soft_wrap=True)
    console.print(f"  measured through {numbers['measured_through']}", soft_wrap=True)
    for alarm in numbers.get("alarms", []):
        console.print(f"  {alarm}", soft_wrap=True)
    console.print(f"report: {path}", soft_wrap=True)


def print_all(numbers: dict[str, Any]) -> None:
    """Every measurement with its error, that of real images, and how it was made."""
    from undiffuse.report import fewer_measured, likelihood_rows, protocol, rows_of

    table = Table("", "value", "real images", "n")
    for name, value, _, real, n, *_ in rows_of(numbers["measurements"], numbers["real"], numbers["features"]):
        table.add_row(name, value, real, n)
    for name, value, _, n, _ in likelihood_rows(numbers["likelihood"]) if "likelihood" in numbers else ():
        table.add_row(f"{name}, bits per dimension" if "bound" in name else name, value, "", n)
    console.print(table)
    console.print(f"± one standard error; over {numbers['features']} where nothing else is said", soft_wrap=True)
    console.print(protocol(numbers["samples"]) + "." + fewer_measured(numbers), soft_wrap=True)


@app.command()
def evaluate(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", help="Samples for the main numbers.")] = 500,
    metrics: Annotated[
        str | None,
        typer.Option(help="Names with commas between: fid, precision-recall, bits-per-dim, ...; by default all."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="What is measured through: inception, dinov2, clip, pixels, a file; by default embedded."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="An .npz of mu and sigma in place of the held-out images.")
    ] = None,
    sweep_n: Annotated[
        int, typer.Option("--sweep-n", help="Samples per point of the sweeps over samplers and guidance; 0: none.")
    ] = 200,
    sampler: SamplerName = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the time grid.")] = None,
    grid: GridName = None,
    guidance: GuidanceScale = None,
    compile: CompileNetwork = False,
    as_json: AsJson = False,
) -> None:
    """Measure a trained run against its held-out data; writes report.html, evaluation.json and pictures/ into it.

    Example: undiffuse evaluate runs/mnist --n 1000
    """
    if n < 2 or sweep_n < 0 or sweep_n == 1:
        raise InputError(f"--n must be at least 2, and --sweep-n 0 or at least 2, not {n} and {sweep_n}")
    undiffuse.load(run).check_sampling(sampler, steps, grid)
    names = None if metrics is None else [name.strip() for name in metrics.split(",")]
    numbers, path = evaluate_run(
        run, n, sweep_n, sampler=sampler, steps=steps, grid=grid, guidance=guidance, compile=compile,
        names=names, features=features, moments=reference,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        print_all(numbers)
        print_three(numbers, path)
