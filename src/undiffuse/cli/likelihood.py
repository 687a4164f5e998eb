"""undiffuse likelihood."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import undiffuse
from undiffuse.cli.common import AsJson, Overwrite, RunFolder, app, console, shares
from undiffuse.errors import InputError, unknown

PARTS = ("held-out", "train")


@app.command()
def likelihood(
    run: RunFolder,
    data: Annotated[Path | None, typer.Option(help="Other data than the run's: an .npz, .npy or folder.")] = None,
    part: Annotated[str, typer.Option(help="Of the data: held-out or train.")] = "held-out",
    n: Annotated[int, typer.Option("--n", help="Samples, at most.")] = 256,
    sampler: Annotated[str | None, typer.Option(help="adaptive, or heun, dpm-single, ... without noise.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of the adaptive sampler; by default 1e-4.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of any other sampler; by default 100.")] = None,
    exact: Annotated[
        bool | None, typer.Option("--exact/--estimated", help="The divergence; by default exact up to 64 dimensions.")
    ] = None,
    probes: Annotated[int, typer.Option(help="Of the estimated divergence; its error is known from 2 on.")] = 1,
    dequantisation: Annotated[str, typer.Option(help="uniform or truncated-normal.")] = "uniform",
    draws: Annotated[int, typer.Option(help="Noise levels of a sample for each bound.")] = 16,
    chain: Annotated[int, typer.Option(help="Steps of the discrete bound; a table has its own.")] = 1000,
    guidance: Annotated[float, typer.Option(help="Scale; 1 is the model itself.")] = 1.0,
    seed: Annotated[int, typer.Option(help="A sample draws from the stream of seed + its row.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples at a time.")] = 64,
    shard: Annotated[str | None, typer.Option(help="i/N: every N-th sample from the i-th on (1 to N).")] = None,
    merge: Annotated[list[Path] | None, typer.Option(help="A shard's --out; repeated, they become one.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .json for the numbers of every sample.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure how likely data are under a trained run, in bits per dimension: by the ODE and by both bounds.

    Example: undiffuse likelihood runs/mnist --n 256 --probes 2 --out likelihood.json
    """
    from undiffuse import bits_per_dim
    from undiffuse.files import write_text

    if out is not None and out.suffix != ".json":
        raise InputError(f"--out is a .json, not {out}")
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists: name another file, or give --overwrite")
    if part not in PARTS:
        raise unknown("part of the data", part, PARTS)
    if n < 1 or batch_size < 1:
        raise InputError(f"--n and --batch-size must be at least 1, not {n} and {batch_size}")
    if merge:
        files = [_read(path) for path in merge]
        name, result = files[0][0], bits_per_dim.merged([part for _, part in files])
    else:
        settings = bits_per_dim.Settings(
            sampler, tolerance, steps, exact, probes, dequantisation, draws, chain, guidance, seed
        )
        name, result = str(run), _measured(run, data, part, n, shard, settings, batch_size)
    values = {"run": name, **result.to_json()}
    if out is not None:
        write_text(out, json.dumps(values))
    summary = {name: value for name, value in values.items() if name != "samples"}
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _show(summary)
        if out is not None:
            console.print(f"every sample: {out}")


def _measured(
    run: Path, data: Path | None, part: str, n: int, shard: str | None, settings: Any, batch_size: int
) -> Any:
    """What is asked for, with a progress bar."""
    from undiffuse import bits_per_dim, config, pipeline
    from undiffuse.examples import balanced, centred
    from undiffuse.experiment import load_data, recipe_of
    from undiffuse.metrics.statistics import data_hash

    index, count = _shard(shard)
    model = undiffuse.load(run)
    if data is None:
        recipe = recipe_of(run)
    else:  # a run that was imported names none
        spec = {key: value for key, value in pipeline.read_model_spec(run).items() if key != "resolved"}
        source = "folder" if data.is_dir() else "arrays"
        recipe = config.validated({**spec, "data": {"source": source, "path": str(data)}})
    split = load_data(recipe)
    dataset = split.held_out if part == "held-out" else split.train
    bits_per_dim.check(model, dataset)
    model.check_guidance(settings.guidance)
    rows = balanced(dataset, min(n, len(dataset)))
    if count > len(rows):
        raise InputError(f"{len(rows)} samples cannot be cut into {count} shards")
    with shares("likelihood") as say:
        found = bits_per_dim.measure(model, dataset, rows[index - 1 :: count], settings, say, batch_size)
    asked = {"part": part, "asked": n, "data_hash": data_hash(centred(dataset, model.shape, rows))[:16]}
    return replace(found, about={**found.about, **asked}, shard=(index, count))


def _shard(text: str | None) -> tuple[int, int]:
    """(i, N) of "i/N"; (1, 1) of None. Raises: InputError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard is i/N with i from 1 to N, such as 1/4, not {text!r}")
    return int(match[1]), int(match[2])


def _read(path: Path) -> tuple[str, Any]:
    """The run that a file names, and its likelihoods."""
    from undiffuse.bits_per_dim import BitsPerDim

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    try:
        part = BitsPerDim.from_json(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return str(values.get("run")), part


def _show(summary: dict[str, Any]) -> None:
    """The table: each way, its bits/dimension, and its terms."""
    settings, ode = summary["settings"], summary["ode"]
    table = Table("bits/dimension", "", "terms", box=None, pad_edge=False)
    names = {"ode": "probability-flow ODE", "continuous_bound": "continuous bound", "discrete_bound": "discrete bound"}
    for key, name in names.items():
        found = summary[key]
        error = found["standard_error"]
        value = f"{found['bits_per_dim']:.4f}" + (f" ± {error:.4f}" if error is not None else "")
        terms = ", ".join(f"{term} {number:.4f}" for term, number in found["terms"].items())
        table.add_row(value, name, terms)
    console.print(table)
    probes = "1 probe" if settings["probes"] == 1 else f"{settings['probes']} probes"
    divergence = "exact divergence" if settings["exact"] else f"divergence by {probes}"
    if ode["estimate_error"] is not None and not settings["exact"]:
        divergence += f", of error {ode['estimate_error']:.4f}"
    noise = f", {settings['dequantisation']} dequantisation" if settings["dequantisation"] else ""
    part = f" ({summary['part']})" if "part" in summary else ""
    console.print(
        f"{summary['n']} samples of {summary['data']}{part}, ± over samples; "
        f"{ode['evaluations']:.0f} evaluations a sample, {divergence}{noise}; "
        f"the density at log-SNR {summary['log_snr']:.2f}",
        soft_wrap=True,
    )
