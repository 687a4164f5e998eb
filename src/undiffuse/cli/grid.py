"""undiffuse grid: a time grid fitted to a model."""

import json
from typing import Annotated

import torch
import typer

import undiffuse
from undiffuse import formats
from undiffuse.cli.common import (
    AsJson,
    GuidanceScale,
    RunFolder,
    SamplerName,
    app,
    console,
    parse_integers,
    shares,
)
from undiffuse.cli.conditions import ConditionOption, LabelOption, given_conditions
from undiffuse.errors import InputError
from undiffuse.samplers import fit as fitting
from undiffuse.samplers import stored

SEEDS = 1 << 61  # of the trajectories, above those that people sample with, so that nobody looks at what was fitted


@app.command()
def grid(
    run: RunFolder,
    steps: Annotated[str, typer.Option(help="Steps of the grid; several with commas, each fitted on its own.")] = "8",
    sampler: SamplerName = None,
    label: LabelOption = None,
    condition: ConditionOption = None,
    guidance: GuidanceScale = None,
    n: Annotated[int, typer.Option("--n", help="Trajectories to fit; as many others are measured.")] = 16,
    name: Annotated[str, typer.Option(help="What the grid is called afterwards: --grid NAME.")] = "fitted",
    as_json: AsJson = False,
) -> None:
    """Fit a time grid to a model: where a few steps come nearest to its own fine solution.

    Written to grids/NAME.json in the run folder; a grid of the same name and number of steps is replaced.

    Example: undiffuse grid runs/mnist --steps 6,8 && undiffuse sample runs/mnist --grid fitted --steps 8
    """
    counts = parse_integers("--steps", steps, least=2)
    if n < 1:
        raise InputError(f"--n must be at least 1, not {n}")
    stored.check_name(name)
    if not (run / "recipe.yaml").is_file() and formats.diffusers.is_folder(run):
        raise InputError(f"a fitted grid is kept in a run folder, and {run} is one of diffusers: import it first")
    model = undiffuse.load(run)
    chosen = model.sampler(sampler)
    if chosen.stochastic:
        raise InputError(f"a grid is fitted to a sampler without noise, not to {chosen!r}")
    for count in counts:
        model.check_sampling(chosen, count, "log-snr")
    every = f"0-{len(model.classes) - 1}" if model.classes and not condition else None
    given = given_conditions(model, label or every, condition, n)
    denoiser = model.guided(guidance, **given)
    shape = model.fitting(denoiser, None)
    x, held_out = (denoiser.prior(range(first, first + n), shape) for first in (SEEDS, SEEDS + n))
    try:
        grids = dict(model.grids.get(name, {}))
    except InputError as error:
        console.print(f"{error}; it is replaced", soft_wrap=True)
        grids = {}
    (run / stored.FOLDER).mkdir(exist_ok=True)  # found out before the work, not after it
    with shares("fitting") as say, torch.no_grad():
        for i, count in enumerate(counts):

            def show(share: float, i: int = i, count: int = count) -> None:
                say(f"{count} steps", (i + share) / len(counts))

            found = fitting.fit(denoiser, chosen, count, x, held_out, show)
            grids[count] = stored.StoredGrid(
                times=tuple(found.times.tolist()),
                sampler=repr(chosen),
                guidance=model.scale(guidance, bool(given)),
                n=n,
                error=found.error,
                before=found.before,
                candidate=found.candidate,
            )
            path = stored.write(run, name, grids)  # one after the other: an interrupted run keeps what it has
    if as_json:
        typer.echo(json.dumps({"grid": str(path), "steps": {count: vars(grids[count]) for count in counts}}))
        return
    for count in counts:
        fitted = grids[count]
        console.print(
            f"{count} steps: error {fitted.error:.4f}, {fitted.before:.4f} on the best named grid "
            f"({fitted.candidate}); root-mean-square, on {n} trajectories that were not fitted",
            soft_wrap=True,
        )
    console.print(f"{path}: use it with --grid {name} --steps {counts[-1]}", soft_wrap=True)
