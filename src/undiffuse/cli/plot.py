"""undiffuse plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

import undiffuse
from undiffuse import pipeline
from undiffuse.cli.common import Overwrite, app, console
from undiffuse.errors import InputError, unknown
from undiffuse.modalities import image
from undiffuse.samplers.stored import ByStep


@app.command()
def plot(
    what: Annotated[str, typer.Argument(help="schedules, forward or grids.")],
    run: Annotated[Path | None, typer.Argument(help="A run folder; without one, named schedules.")] = None,
    schedule: Annotated[list[str] | None, typer.Option(help="A schedule's name; may be repeated.")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="A time grid's name; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the time grids.")] = 10,
    out: Annotated[str | None, typer.Option(help="A PNG; by default WHAT.png.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw schedules, the forward process of a real image, or the time grids of samplers.

    Example: undiffuse plot schedules --schedule cosine --schedule linear --out schedules.png
    """
    kinds = ("schedules", "forward", "grids")
    if what not in kinds:
        raise unknown("plot", what, kinds)
    path = out or f"{what}.png"
    if not path.endswith(".png"):
        raise InputError(f"a plot is written as .png, not {path}")
    image.check_output(path, overwrite)
    from PIL import Image

    from undiffuse import plots
    from undiffuse.codecs import Pixels
    from undiffuse.data import digits
    from undiffuse.experiment import load_experiment_data
    from undiffuse.files import atomic_path
    from undiffuse.samplers.grid import GRIDS, TABLE_GRIDS
    from undiffuse.samplers.grid import named as grid_named
    from undiffuse.schedule import SCHEDULES
    from undiffuse.schedule import named as schedule_named

    fitted: Mapping[str, ByStep] = {}
    if run is not None:
        model = undiffuse.load(run)
        denoiser, fitted = model.denoiser, model.grids
        shown = {pipeline.read_spec(run)["schedule"]["name"]: denoiser.schedule}
        t_min, t_max = denoiser.t_min, denoiser.t_max
        data = load_experiment_data(run)[1] if what == "forward" else None
    else:
        names = schedule or ([n for n in SCHEDULES if n != "table"] if what == "schedules" else ["cosine"])
        shown = {name: schedule_named(name) for name in names}
        first = next(iter(shown.values()))
        t_min, t_max, data = first.finest_time, 1.0, None
    chosen = next(iter(shown.values()))
    if what == "schedules":
        picture = plots.to_png(plots.schedules(shown))
    elif what == "grids":
        names = grid or [g for g in GRIDS if chosen.length or g not in TABLE_GRIDS]
        points = {name: grid_named(name, chosen, steps, t_min, t_max) for name in names if name not in fitted}
        for name in fitted if grid is None else [g for g in grid if g in fitted]:
            points |= {f"{name}, {count} steps": fitted[name][count].points for count in sorted(fitted[name])}
        picture = plots.to_png(plots.grids(chosen, points))
    else:
        codec, split = Pixels(), data or digits.load()
        times = [i / 10 for i in range(11)]
        cells = plots.forward_process(chosen, codec.encode(split.held_out.samples[:1])[0], codec.decode, times)
        with atomic_path(path) as temporary:
            Image.fromarray(cells[..., 0] if cells.shape[-1] == 1 else cells).save(temporary, format="PNG")
    if what != "forward":
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture)
    console.print(path)
