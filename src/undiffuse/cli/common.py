"""What the commands share: the program itself, its options, its progress bar, and how its arguments are read."""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from undiffuse.errors import InputError

app = typer.Typer(
    help="Train, sample and evaluate diffusion models.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as `train` writes it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
CompileNetwork = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: for many samples on a GPU.")
]
GuidanceScale = Annotated[float | None, typer.Option(help="Scale; 0 unconditional, 1 conditional.")]
SamplerName = Annotated[
    str | None, typer.Option(help="ddim:eta=0.5, dpm++, 'DPM++ 2M Karras', ...: see `undiffuse samplers`.")
]
StepName = Annotated[
    str | None, typer.Option(metavar="STEP|best", help="Earlier weights: of a snapshot, or the best that were kept.")
]
GridName = Annotated[str | None, typer.Option(help="Time grid: uniform, log-snr, karras, ..., or a fitted one.")]


@contextmanager
def progress_bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "measuring the pace"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} left" if minutes >= 60 else f"{minutes}:{rest:02d} left"


@contextmanager
def shares(what: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar that is told what is being done and the share done, and says how long the rest will take."""
    with progress_bar() as progress:
        task, began = progress.add_task(what, total=1.0, note=""), time.monotonic()

        def say(doing: str, share: float) -> None:
            left = (time.monotonic() - began) / share * (1 - share) if share > 0 else None
            progress.update(task, completed=share, note=f"{doing}  {duration(left)}")

        yield say
        progress.update(task, completed=1.0, note="")


def parse_size(text: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise InputError(f"--size is HEIGHTxWIDTH or one number, not {text!r}")
    return (shape[0], int(match[1]), int(match[2] or match[1]))


def parse_step(text: str | None) -> int | str | None:
    """`--step` as `load` takes it."""
    return int(text) if text is not None and text.isdecimal() else text


def parse_integers(option: str, text: str, least: int, below: float = math.inf) -> list[int]:
    """Integers separated by commas. Raises: InputError unless all lie from `least` up to `below`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and least <= int(part) < below for part in parts):
        end = "" if below == math.inf else f" and below {below}"
        raise InputError(f"{option} takes integers of {least} or more{end} with commas between them, not {text!r}")
    return [int(part) for part in parts]
