"""A training run in a folder: checkpoints, the log, previews, and going on where it stopped.

The folder holds checkpoints/step-XXXXXXXX.safetensors (the whole state, the newest two), model.safetensors (the
averaged weights), metrics.jsonl, samples/ and, where they are asked for, snapshots/. Every file is replaced atomically,
so a run that dies at any moment goes on from its newest checkpoint, and on the CPU ends with the same bits as a run
that was never stopped.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.denoiser import BaseDenoiser
from undiffuse.errors import InputError
from undiffuse.files import write_text
from undiffuse.training.levels import alarm, loss_by_level
from undiffuse.training.loop import Batch, train, validation_loss
from undiffuse.training.state import TrainState
from undiffuse.weights import read, write

KEPT_CHECKPOINTS = 2
PACED_STEPS = 10  # at least so many steps are timed before a time budget becomes a step count
OVERHEAD = 0.05  # share of a time budget left for checkpoints, validation and previews


@dataclass(frozen=True)
class Plan:
    """How long to train, and how often to do what. Steps count optimizer steps; give `steps` or `minutes`."""

    steps: int | None
    minutes: float | None
    learning_rate: float
    warmup: int
    clip: float
    ema_width: float
    batch_size: int
    log_every: int
    checkpoint_every: int
    validate_every: int
    sample_every: int
    snapshot_every: int | None = None


@dataclass(frozen=True)
class Event:
    """What happened at a step: a line of the log. total is None until a budget in minutes has become a step count."""

    step: int
    total: int | None
    loss: float
    images_per_second: float
    seconds_left: float | None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest last."""
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; what is no line of a log (a kill cuts the last one short) is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                lines.append(values)
    return lines


class Run:
    """The files of one training run, and its loop."""

    def __init__(self, folder: Path, state: TrainState[Any], plan: Plan) -> None:
        self.folder, self.state, self.plan = folder, state, plan
        self.stopping = False
        self.data_share = 0.0  # of the time of this session, spent waiting for data

    def resume(self) -> bool:
        """Restore the newest checkpoint, and cut the log back to it; False where there is none.

        Raises: InputError for a checkpoint that is truncated, newer, or of another model.
        """
        found = checkpoints(self.folder)
        if not found and any("loss" in line for line in read_metrics(self.folder)) and self._model.is_file():
            raise InputError(
                f"{self.folder} holds a model and a log but no checkpoint to go on from: "
                "put the checkpoint back, or name another run folder"
            )
        if found:
            self.state.load(found[-1])
            if self._model_step() != self.state.step:  # it died between the two files, or the model was lost
                self._save_model()
        log = [line for line in read_metrics(self.folder) if line["step"] <= self.state.step] if found else []
        if (self.folder / "metrics.jsonl").is_file():
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in log))
        return bool(found)

    @property
    def _model(self) -> Path:
        return self.folder / "model.safetensors"

    def _save_model(self) -> None:
        about = {"step": self.state.step, "seconds": round(self.state.seconds, 1)}
        write(self._model, self.state.average.state_dict(), about)

    def snapshot(self) -> None:
        """Keep the averaged weights as they stand, for good: an early model guides a later one (`Autoguidance`)."""
        self.state.check_finite()
        path = self.folder / "snapshots" / f"step-{self.state.step:08d}.safetensors"
        write(path, self.state.average.state_dict(), {"step": self.state.step})

    def _model_step(self) -> int | None:
        """The step of model.safetensors; None where it is missing or cannot be read."""
        try:
            step: int | None = read(self._model)[1].get("step")
        except InputError:
            return None
        return step

    def stop(self) -> None:
        """Ask the loop to save and end after the step at hand (from a signal handler, say)."""
        self.stopping = True

    def save(self) -> None:
        """Write a checkpoint and the averaged weights, then drop the oldest checkpoints."""
        self.state.save(self.folder / "checkpoints" / f"step-{self.state.step:08d}.safetensors")
        self._save_model()
        for old in checkpoints(self.folder)[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def log(self, **line: Any) -> None:
        """Append a line to metrics.jsonl. Raises: InputError when the disk is full."""
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    def train(
        self,
        batch: Callable[[int], Batch],
        held_out: Callable[[], Iterator[Batch]],
        preview: Callable[[int], None] | None = None,
        waited: Callable[[], float] = lambda: 0.0,
    ) -> Iterator[Event]:
        """Train to the end of the plan, or until `stop`; yields an event every `log_every` steps, and saves at the end.

        preview(step): draws samples from state.average. waited(): seconds spent waiting for data so far.

        Raises: InputError when the loss is not finite, or the disk full.
        """
        state, plan = self.state, self.plan
        if plan.steps is not None:
            state.total = plan.steps
        loop = train(
            state,
            batch,
            learning_rate=plan.learning_rate,
            warmup=plan.warmup,
            clip=plan.clip,
            ema_width=plan.ema_width,
        )
        began = last = time.monotonic()
        before, first, logged = state.seconds, state.step, state.step
        settled = None  # (time, step) once the first, slow steps are over
        start, told = waited(), waited()
        losses: list[Tensor] = []
        for loss in loop:
            losses.append(loss)
            now = time.monotonic()
            state.seconds = before + now - began
            if state.step == first + 3:
                settled = (now, state.step)
            if state.total is None and settled and state.step >= max(plan.warmup, settled[1] + PACED_STEPS):
                state.check_finite()  # which waits for the device, so that the clock reads work done
                now = time.monotonic()
                state.total = self._budget(now, settled)
            done = state.step == state.total
            if state.step % plan.log_every == 0 or done or self.stopping:
                state.check_finite()
                mean = float(sum(losses) / len(losses))
                now, waiting = time.monotonic(), waited()
                passed = max(now - last, 1e-9)
                rate, share = (state.step - logged) / passed, (waiting - told) / passed
                self.data_share = (waiting - start) / max(now - began, 1e-9)
                last, logged, told = now, state.step, waiting
                losses.clear()
                left = None if state.total is None else (state.total - state.step) / rate
                images_per_second = rate * plan.batch_size
                self.log(
                    step=state.step,
                    loss=mean,
                    learning_rate=state.optimizer.param_groups[0]["lr"],
                    images_per_second=round(images_per_second, 1),
                    data_share=round(share, 4),
                    seconds=round(state.seconds, 2),
                )
                yield Event(state.step, state.total, mean, images_per_second, left)
            if state.step % plan.validate_every == 0 or done:
                self._validate(held_out)
            if state.step % plan.checkpoint_every == 0 or done or self.stopping:
                self.save()
            if plan.snapshot_every and state.step % plan.snapshot_every == 0:
                self.snapshot()
            if preview and (state.step % plan.sample_every == 0 or done):
                state.check_finite()
                preview(state.step)
            if self.stopping:
                return

    def _validate(self, held_out: Callable[[], Iterator[Batch]]) -> None:
        """Log the validation loss, of a denoiser by noise levels too; and once a run, what is wrong with it."""
        average, by_level = self.state.average, {}
        if isinstance(average, BaseDenoiser):
            by_level["validation_levels"] = loss_by_level(average, held_out())
        self.log(step=self.state.step, **validation_loss(self.state, held_out), **by_level)
        found = alarm(read_metrics(self.folder))
        if found:
            self.log(step=self.state.step, alarm=found)
            warnings.warn(found, stacklevel=2)

    def _budget(self, now: float, settled: tuple[float, int]) -> int:
        """The step count that a budget in minutes comes to, at the pace since the first steps."""
        assert self.plan.minutes is not None
        pace = (self.state.step - settled[1]) / max(now - settled[0], 1e-9)
        left = 60 * self.plan.minutes * (1 - OVERHEAD) - self.state.seconds
        total = self.state.step + max(1, int(left * pace))
        self.log(step=self.state.step, total_steps=total, minutes=self.plan.minutes)
        return total
