"""Dashboards that are told what metrics.jsonl is told. To add one, write a class and a line in `TRACKERS`."""

import contextlib
import importlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from undiffuse.errors import InputError
from undiffuse.files import write_text


class Tracker(ABC):
    """A run shown elsewhere.

    folder: of the run; recipe: its configuration, plain; step: of the checkpoint that it goes on from, 0 at the start.
    module: what is imported, of the extra `track`, and not before a tracker is asked for.
    """

    module: ClassVar[str]

    @abstractmethod
    def __init__(self, folder: Path, recipe: Mapping[str, Any], step: int) -> None: ...

    @abstractmethod
    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one line of the log."""

    @abstractmethod
    def picture(self, step: int, file: Path) -> None:
        """A preview that was written."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, of which numbers are shown."""
        values = {
            name: float(value)
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if values:
            self.numbers(line["step"], values)


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`. Steps after the checkpoint are taken back."""

    module = "torch.utils.tensorboard"

    def __init__(self, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, file: Path) -> None:
        pixels = np.asarray(Image.open(file))
        self.writer.add_image("samples", pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, in the project `undiffuse`, which a resumed run goes on with.

    Whether it is sent, and where to, is for that service's own variables to say (WANDB_MODE=offline keeps it here). It
    takes no step twice: of those after the checkpoint it keeps the first.
    """

    module = "wandb"

    def __init__(self, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        self.wandb: Any = importlib.import_module("wandb")
        kept = folder / "wandb" / "id"
        if not kept.is_file():
            write_text(kept, uuid.uuid4().hex[:8])
        self.run = self.wandb.init(
            project="undiffuse",
            name=folder.name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=dict(recipe),
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, step: int, file: Path) -> None:
        self.run.log({"samples": self.wandb.Image(str(file))}, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_tracker(name: str | None) -> None:
    """Raises: InputError where the package of a tracker is not installed, or cannot be imported."""
    if name is None:
        return
    try:
        importlib.import_module(TRACKERS[name].module)
    except ImportError as error:
        raise InputError(
            f"training.track={name} needs packages that are not there ({' '.join(str(error).split())}): "
            "pip install 'undiffuse[track]', or leave it out; metrics.jsonl is written in any case"
        ) from error


@contextlib.contextmanager
def tracking(name: str | None, folder: Path, recipe: Mapping[str, Any], step: int) -> Iterator[list[Tracker]]:
    """The trackers of one session, closed at its end: one, or none."""
    trackers = [] if name is None else [TRACKERS[name](folder, recipe, step)]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()
