"""undiffuse interpolate: from one picture to another, through the noise."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import undiffuse
from undiffuse import editing, samplers
from undiffuse.cli.common import (
    AsJson,
    GridName,
    GuidanceScale,
    Overwrite,
    RunFolder,
    SamplerName,
    app,
    console,
    parse_integers,
    shares,
)
from undiffuse.cli.conditions import ConditionOption, given_conditions
from undiffuse.codecs import Identity
from undiffuse.data.pictures import read_picture
from undiffuse.denoiser import BaseDenoiser
from undiffuse.errors import InputError
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline


def _two(option: str, given: list[Any]) -> list[Any]:
    if len(given) != 2:
        raise InputError(f"{option} takes two with a comma between them, not {len(given)}")
    return given


def read_pictures(paths: list[Path], model: Pipeline, shape: tuple[int, ...]) -> Tensor:
    """Pictures as the model sees them (B, C, H, W). Raises: InputError where size or channels are not the model's."""
    channels, height, width = shape
    pictures = [read_picture(path, channels) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[1:] != (height, width):
            size = f"{picture.shape[1]}x{picture.shape[2]}"
            raise InputError(f"{path} is {size} pixels, but this model takes {height}x{width}: scale it first")
    encoded: Tensor = model.codec.encode(torch.stack(pictures))
    return encoded


@app.command()
def interpolate(
    run: RunFolder,
    seeds: Annotated[str | None, typer.Option(help="Two seeds: from the picture of one to that of the other.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Two picture files of the model's size, in the seeds' place.")
    ] = None,
    steps_between: Annotated[int, typer.Option(help="Pictures between the two ends.")] = 8,
    out: Annotated[str, typer.Option(help="row.png, pictures.npz, or a folder for single PNGs.")] = "interpolation.png",
    label: Annotated[str | None, typer.Option(help="One class, for all pictures of the row.")] = None,
    condition: ConditionOption = None,
    guidance: GuidanceScale = None,
    sampler: SamplerName = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the time grid.")] = None,
    grid: GridName = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Go from one picture to another on the arc between their noises: of two seeds, or of two pictures run back.

    Pictures that are run back come out as they went in but for the round-trip error, which is printed; more steps make
    it smaller, and guidance is 1 for them unless given.

    Example: undiffuse interpolate runs/mnist --seeds 0,1 --label 7 --out row.png
    """
    image.check_output(out, overwrite)
    if (seeds is None) == (images is None):
        raise InputError("an interpolation takes --seeds A,B or --images A.png,B.png: one of them")
    if steps_between < 0:
        raise InputError(f"--steps-between must be 0 or more, not {steps_between}")
    model = undiffuse.load(run)
    image.check_output(out, overwrite, latents=isinstance(model.codec, Identity))
    chosen, times = model.sampler(sampler), model.times(steps, grid, sampler)
    if chosen.stochastic:
        raise InputError(f"an interpolation needs a sampler without noise, such as dpm++, not {chosen!r}")
    model.check_sampling(sampler, steps, grid)
    given = given_conditions(model, label, condition, 1)
    scale = 1.0 if images is not None and guidance is None else guidance
    denoiser: BaseDenoiser = model.guided(scale, **given)
    shape = model.fitting(denoiser, None)
    numbers: dict[str, Any] = {}
    if seeds is not None:
        ends = denoiser.prior(_two("--seeds", parse_integers("--seeds", seeds, least=0, below=2**63)), shape)
    else:
        assert images is not None
        paths = [Path(path.strip()) for path in _two("--images", images.split(","))]
        inverted = editing.invert(denoiser, chosen, read_pictures(paths, model, shape), times)
        ends, numbers["round_trip"] = inverted.noise, [round(float(error), 5) for error in inverted.round_trip]
    count = steps_between + 2
    first, last = (end.expand(count, *shape) for end in ends.split(1))
    x = editing.spherical(first, last, torch.linspace(0, 1, count, dtype=torch.float64))
    with shares("sampling") as say:
        for k, x in enumerate(samplers.walk(denoiser, chosen, x, times), start=1):  # noqa: B007, B020
            say(f"{count} pictures", k / (len(times) - 1))
    row = model.decode(x)
    facts = {
        "run": str(run),
        "between": seeds or images,
        "label": label,
        "condition": condition or [],
        "guidance": model.scale(scale, bool(given)),
        "sampler": repr(chosen),
        "steps": len(times) - 1,
        "grid": model.grid(grid, sampler),
        **numbers,
        "undiffuse": undiffuse.__version__,
    }
    image.save(out, row, metadata={"undiffuse": json.dumps(facts)}, overwrite=overwrite, columns=count)
    if as_json:
        typer.echo(json.dumps({**facts, "out": out}))
        return
    if numbers:
        errors = " and ".join(f"{error:.4f}" for error in numbers["round_trip"])
        console.print(f"round-trip error {errors} (root-mean-square; pictures lie in [-1, 1])", soft_wrap=True)
    console.print(f"{count} pictures: {out}", soft_wrap=True)
