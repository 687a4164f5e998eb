"""Trackers: they are told what metrics.jsonl is told, and what is not installed is refused before any work."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tiny import tiny, train
from undiffuse import InputError
from undiffuse.training import TRACKERS, read_metrics

NUMBERS = ("loss", "learning_rate", "validation_loss", "data_share")


class StandIn(types.ModuleType):
    """What a tracker calls of the package wandb, recorded."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict] = []
        self.told: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **arguments):
        self.begun.append(arguments)
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.finished += 1

    def Image(self, path):
        return Path(path).name


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in read_metrics(folder) if name in line]


@pytest.mark.slow  # it takes seconds to import
def test_tensorboard_holds_the_log_also_after_a_run_that_died(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    settings = ("training.track=tensorboard", "training.log_every=2", "training.checkpoint_every=6")
    experiment = tiny(folder, *settings, "training.sample_every=6")
    for event in experiment.train():
        if event.step == 10:
            break  # without saving: from step 6 it goes on
    again = tiny(folder, *settings, "training.sample_every=6")
    assert again.state.step == 6
    for _ in again.train():
        pass
    held = accumulators.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0})
    held.Reload()
    for name in NUMBERS:
        found = [(event.step, event.value) for event in held.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in logged(folder, name)]
        np.testing.assert_allclose([v for _, v in found], [v for _, v in logged(folder, name)], rtol=1e-6)
    assert [event.step for event in held.Images("samples")] == [6, 12]


def test_wandb_is_told_the_log_and_a_resumed_run_is_the_same_one(tmp_path: Path, monkeypatch) -> None:
    wandb, folder = StandIn(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny(folder, "training.track=wandb", "training.sample_every=12"), until=5)
    again = tiny(folder, "training.track=wandb", "training.sample_every=12")
    for _ in again.train():
        pass
    first, second = wandb.begun
    assert first["id"] == second["id"] and second["resume"] == "allow" and wandb.finished == 2
    assert (first["project"], first["name"], first["dir"]) == ("undiffuse", "run", str(folder))
    assert first["config"]["training"]["batch_size"] == 16 and first["config"]["resolved"]["shape"] == [1, 8, 8]
    for name in NUMBERS:
        assert [(step, values[name]) for step, values in wandb.told if name in values] == logged(folder, name)
    assert (12, {"samples": "step-00000012.png"}) in wandb.told


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_refused_before_any_work(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    with pytest.raises(InputError, match=rf"training.track={name} .*pip install 'undiffuse\[track\]'"):
        tiny(tmp_path / "run", f"training.track={name}")
    assert not (tmp_path / "run").exists()


def test_other_names_are_refused_and_a_run_may_change_its_tracker(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        tiny(tmp_path / "run", "training.track=tensorbord")
    train(tiny(tmp_path / "run", "training.track=none"), until=5)
    monkeypatch.setitem(sys.modules, "wandb", StandIn())
    train(tiny(tmp_path / "run", "training.track=wandb"))
    assert read_metrics(tmp_path / "run")[-1]["step"] == 12
