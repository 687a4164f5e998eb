"""undiffuse import, undiffuse export: checkpoints of other libraries."""

import json
from pathlib import Path
from typing import Annotated

import typer

import undiffuse
from undiffuse.cli.common import AsJson, Overwrite, RunFolder, app, console
from undiffuse.cli.conditions import read_array
from undiffuse.formats import diffusers


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="A folder of diffusers: a pipeline's, or a network's with its scheduler.")
    ],
    run: Annotated[
        Path | None, typer.Option(help="The run folder to make; by default runs/ and the folder's name.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Height and width, where the configuration names none.")] = None,
    null_label: Annotated[
        int | None, typer.Option(help="The class that stood for no class in training; allows guidance.")
    ] = None,
    null_tokens: Annotated[
        Path | None, typer.Option(help="An .npy of what the text encoder makes of the empty text; allows guidance.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run folder of a checkpoint of another library. Options without an equal are refused by name.

    Example: undiffuse import downloads/ddpm-cifar10-32 && undiffuse sample runs/ddpm-cifar10-32
    """
    run = run or Path("runs") / path.resolve().name
    tokens = None if null_tokens is None else read_array(str(null_tokens), "null_tokens")
    notes = diffusers.import_folder(path, run, size=size, null_label=null_label, null_tokens=tokens)
    model = undiffuse.load(run)
    parameters = sum(parameter.numel() for parameter in model.denoiser.parameters())
    facts = {"run": str(run), "shape": list(model.shape), "parameters": parameters, "sampling": model.sampling}
    facts |= {"conditions": list(model.parts), "notes": list(notes)}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    size_of = "x".join(map(str, model.shape))
    console.print(f"{run}: samples of {size_of}, {parameters:,} parameters", soft_wrap=True)
    if model.parts:
        console.print(f"conditions: {', '.join(model.parts)}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="The folder to write; by default RUN/diffusers.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a run as a folder that diffusers loads. What that library has no equal for is refused by name.

    Example: undiffuse export runs/mine --out exported/mine
    """
    out = out or run / "diffusers"
    notes = diffusers.export(run, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"run": str(run), "out": str(out), "notes": list(notes)}))
        return
    console.print(f"{run} as a folder of diffusers: {out}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
