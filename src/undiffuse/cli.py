"""The command-line program. Bad input ends in one line and exit code 2; numbers come as JSON with --json."""

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import undiffuse
from undiffuse import config, pipeline, recipes
from undiffuse.errors import InputError, unknown
from undiffuse.modalities import image

app = typer.Typer(
    help="Train, sample and evaluate diffusion models.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)
# newer versions of typer carry their own copy of click; this base class is the same either way
UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
DEMO_SECONDS = 150.0
DEMO_TRAINING_SHARE = 0.5  # of the demo's seconds; the rest is for starting, evaluating and drawing

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as `train` writes it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "measuring the pace"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} left" if minutes >= 60 else f"{minutes}:{rest:02d} left"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path ending in .yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Show the whole recipe and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; the same command again goes on where it stopped.

    Example: undiffuse train mnist data.path=mnist.npz training.minutes=10 run=runs/mnist
    """
    changes = list(overrides or [])
    named = [change.partition("=")[2] for change in changes if change.startswith("run=")]
    chosen = recipes.named(recipe).changed([change for change in changes if not change.startswith("run=")])
    if show:
        typer.echo(config.to_yaml(config.plain(chosen)), nl=False)
        return
    if named and not named[-1]:
        raise InputError("run= needs the path of a run folder")
    folder = Path(named[-1] if named else f"runs/{chosen.name}")
    summary = _train(chosen, folder)
    if as_json:
        typer.echo(json.dumps(summary))


def _train(recipe: config.Recipe, folder: Path) -> dict[str, Any]:
    """Train with a progress bar; SIGINT and SIGTERM save and end. Returns what was done."""
    from undiffuse.experiment import Experiment, parameters

    experiment = Experiment(recipe, folder)
    run, resolved = experiment.run, experiment.spec["resolved"]
    skipped = experiment.split.train.skipped  # of the whole source
    if skipped:
        console.print(f"skipped {len(skipped)} corrupt files: {', '.join(skipped)}", soft_wrap=True)
    if experiment.finished:
        console.print(f"{folder} is trained already: {experiment.state.step:,} steps")
    else:
        size = "x".join(map(str, resolved["shape"]))
        start = f"going on from step {experiment.state.step:,}" if experiment.resumed else "training"
        console.print(
            f"{start}: {recipe.name}, {resolved['train_samples']:,} samples of {size}, "
            f"{parameters(experiment.pipeline.denoiser):,} parameters, {resolved['precision']}, in {folder}"
        )
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if caught:  # asked twice: do not wait for the step at hand
            raise KeyboardInterrupt
        caught.append(number)
        run.stop()

    event = None
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _progress() as progress:
            task = progress.add_task("training", total=None, note="")
            for event in experiment.train() if not experiment.finished else ():
                progress.update(
                    task,
                    total=event.total,
                    completed=event.step,
                    note=f"loss {event.loss:.4f}  {event.images_per_second:,.0f} images/s  "
                    + _duration(event.seconds_left),
                )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    state = experiment.state
    if caught:
        console.print(f"stopped and saved at step {state.step:,}: the same command goes on from there")
        raise typer.Exit(128 + caught[0])
    return {
        "run": str(folder),
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "loss": event.loss if event else None,
        "images_per_second": round(state.step * recipe.training.batch_size / max(state.seconds, 1e-9), 1),
    }


def parse_labels(text: str, classes: tuple[str, ...]) -> list[int]:
    """Labels from `3`, `0-9`, `1,5,7` or class names. Raises: InputError for what the model does not know."""
    if not classes:
        raise InputError("this model has no classes: leave --label out")
    labels: list[int] = []
    for part in text.split(","):
        part = part.strip()
        if part in classes:
            labels.append(classes.index(part))
        elif span := re.fullmatch(r"(\d+)-(\d+)", part):
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise InputError(f"labels {part} fall: write {last}-{first}")
            labels += range(first, last + 1)
        elif part.isdigit():
            labels.append(int(part))
        else:
            raise unknown("class", part, classes)
    for label in labels:
        if label >= len(classes):
            raise InputError(f"label {label} is out of range: the model knows 0 to {len(classes) - 1}")
    return labels


def parse_vector(text: str) -> list[float]:
    """Numbers separated by commas. Raises: InputError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--vector takes numbers with commas between them, not {text!r}") from error


def _size(text: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise InputError(f"--size is HEIGHTxWIDTH or one number, not {text!r}")
    return (shape[0], int(match[1]), int(match[2] or match[1]))


@app.command()
def sample(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", help="How many samples.")] = 64,
    out: Annotated[str, typer.Option(help="grid.png, samples.npz, or a folder for single PNGs.")] = "samples.png",
    label: Annotated[str | None, typer.Option(help="Classes: 3, 0-9, 1,5,7 or names; spread evenly.")] = None,
    vector: Annotated[str | None, typer.Option(help="A vector condition: numbers with commas.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale; 0 unconditional, 1 conditional.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim:eta=0.5, euler, heun, dpm++, euler-maruyama.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the time grid.")] = None,
    grid: Annotated[str | None, typer.Option(help="Time grid: uniform, quadratic, log-snr, karras, ...")] = None,
    seed: Annotated[int, typer.Option(help="Sample i is the picture of seed + i.")] = 0,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, other than trained at.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time; changes no sample.")] = 256,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a trained run.

    Example: undiffuse sample runs/mnist --n 100 --label 0-9 --steps 12 --out digits.png
    """
    image.check_output(out, overwrite)
    model = undiffuse.load(run)
    if n < 1 or batch_size < 1:
        raise InputError(f"--n and --batch-size must be at least 1, not {n} and {batch_size}")
    labels, wanted = None, []
    if label is not None:
        wanted = parse_labels(label, model.classes)
        labels = np.asarray(wanted, np.int64)[np.arange(n) * len(wanted) // n]
    numbers = None if vector is None else parse_vector(vector)
    chosen = model.sampler(sampler)
    shape = model.shape if size is None else _size(size, model.shape)
    if not 0 <= seed < 2**63 - n:
        raise InputError(f"--seed must be 0 or more and below 2^63 - n, not {seed}")
    model.check_shape(shape)
    model.times(steps, grid)
    model.guided(guidance, label is not None or vector is not None)
    began = time.monotonic()
    with _progress() as progress:
        task = progress.add_task("sampling", total=n, note="")

        def show(done: int, total: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            progress.update(task, completed=done, note=f"{done}/{total}  {_duration(left)}")

        images = model.sample(
            n, label=labels, vector=numbers, guidance=guidance, sampler=chosen, steps=steps, grid=grid, seed=seed,
            shape=shape, batch_size=batch_size, progress=show,
        )  # fmt: skip
    seconds = time.monotonic() - began
    defaults = model.sampling
    conditional = label is not None or vector is not None
    scale = (defaults["guidance"] if conditional else 1.0) if guidance is None else guidance
    facts = {
        "run": str(run),
        "n": n,
        "seed": seed,
        "label": label,
        "vector": numbers,
        "guidance": scale,
        "sampler": repr(chosen),
        "steps": steps or defaults["steps"],
        "grid": grid or defaults["grid"],
        "undiffuse": undiffuse.__version__,
    }
    columns = n // len(wanted) if len(wanted) > 1 and n % len(wanted) == 0 else None  # one row per class
    image.save(out, images, labels, {"undiffuse": json.dumps(facts)}, overwrite, columns)
    if as_json:
        typer.echo(json.dumps({**facts, "out": out, "seconds": round(seconds, 3)}))
    else:
        console.print(f"{n} samples in {seconds:.1f} s: {out}")


def _evaluate(run: Path, n: int, sweep_n: int, deadline: float | None = None) -> tuple[dict[str, Any], Path]:
    from undiffuse import evaluation, report

    with _progress() as progress:
        task: TaskID = progress.add_task("evaluating", total=1.0, note="")

        def say(what: str, share: float) -> None:
            progress.update(task, completed=share, note=what)

        result = evaluation.evaluate(run, n=n, sweep_n=sweep_n, deadline=deadline, say=say)
        path = report.write(run, result)
        progress.update(task, completed=1.0, note="")
    return result.numbers, path


def _print_three(numbers: dict[str, Any], path: Path) -> None:
    from undiffuse.report import three_numbers

    for value, what in three_numbers(numbers):
        console.print(f"  {value:>8}  {what}", soft_wrap=True)
    console.print(f"  measured through {numbers['measured_through']}", soft_wrap=True)
    console.print(f"report: {path}", soft_wrap=True)


@app.command()
def evaluate(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", help="Samples for the main numbers.")] = 500,
    sweep_n: Annotated[int, typer.Option("--sweep-n", help="Samples per point of the sweep over samplers.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Measure a trained run against its held-out data; writes report.html and evaluation.json into it.

    Example: undiffuse evaluate runs/mnist --n 1000
    """
    if n < 2 or sweep_n < 2:
        raise InputError(f"--n and --sweep-n must be at least 2, not {n} and {sweep_n}")
    pipeline.read_spec(run)
    numbers, path = _evaluate(run, n, sweep_n)
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        _print_three(numbers, path)


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
    _train(recipes.named("demo").changed([f"training.minutes={minutes}"]), run)
    n = int(min(500, max(100, 5 * seconds)))
    # the rest is to draw and write the report, and for a machine that slows down
    numbers, path = _evaluate(run, n, 200, deadline=began + 0.92 * seconds)
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        _print_three(numbers, path)
        console.print(f"done in {time.monotonic() - began:.0f} s")


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
    from undiffuse.schedule import SCHEDULES
    from undiffuse.schedule import named as schedule_named

    if run is not None:
        denoiser = undiffuse.load(run).denoiser
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
        fitting = [g for g in GRIDS if chosen.length or g not in TABLE_GRIDS]
        picture = plots.to_png(plots.grids(chosen, grid or fitting, steps, t_min, t_max))
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


@app.command()
def info(
    run: Annotated[Path | None, typer.Argument(help="A run folder; without one, the installation.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run is, or what is installed and known.

    Example: undiffuse info runs/demo --json
    """
    facts: dict[str, Any]
    if run is None:
        from undiffuse import guidance, networks, prediction, samplers
        from undiffuse.schedule import SCHEDULES

        facts = {
            "undiffuse": undiffuse.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"cpu, {torch.get_num_threads()} threads",
            "recipes": list(recipes.RECIPES),
            "schedules": list(SCHEDULES),
            "predictions": list(prediction.PREDICTIONS),
            "networks": list(networks.NETWORKS),
            "samplers": list(samplers.SAMPLERS),
            "grids": list(samplers.GRIDS),
            "guidances": list(guidance.GUIDANCES),
        }
    else:
        from undiffuse.experiment import parameters
        from undiffuse.training import read_metrics

        spec = pipeline.read_spec(run)
        model, log = undiffuse.load(run), read_metrics(run)
        facts = {
            "run": str(run),
            "recipe": spec["name"],
            "shape": list(model.shape),
            "classes": list(model.classes),
            "parameters": parameters(model.denoiser),
            "schedule": repr(model.denoiser.schedule),
            "prediction": repr(model.denoiser.prediction),
            "range": [model.denoiser.t_min, model.denoiser.t_max],
            "sampling": model.sampling,
            "steps": max((line["step"] for line in log), default=0),
            "seconds": max((line.get("seconds", 0.0) for line in log), default=0.0),
            "precision": spec["resolved"]["precision"],
            "undiffuse": spec["resolved"]["undiffuse"],
        }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key:>12}  {', '.join(map(str, value)) if isinstance(value, list) else value}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program; exits with 0, or 2 and one line on standard error for bad input."""
    try:
        code = app(
            args=(sys.argv[1:] if arguments is None else arguments) or ["--help"],
            prog_name="undiffuse",
            standalone_mode=False,
        )
    except (InputError, UsageError, OSError) as error:
        message = error.format_message() if isinstance(error, UsageError) else str(error)  # type: ignore[attr-defined]
        print(f"undiffuse: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
