"""The best weights on the way: which are kept, and that a run that died keeps the same."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tiny import tiny, train
from undiffuse import InputError, load
from undiffuse.training import Best, read_metrics
from undiffuse.training.clock import Clock
from undiffuse.weights import description


class State:
    """What `Best` reads of a training state."""

    def __init__(self) -> None:
        self.step, self.average = 0, torch.nn.Linear(1, 1)


@pytest.mark.parametrize(("higher", "kept"), [(False, [0, 1, 3]), (True, [0, 2])])
def test_the_best_number_decides_and_of_equal_ones_the_first(tmp_path: Path, higher: bool, kept: list[int]) -> None:
    best, state = Best(tmp_path / "best.safetensors", "number", higher), State()
    for state.step, value in enumerate([3.0, 2.0, 4.0, 1.0, 1.0]):
        torch.nn.init.constant_(state.average.weight, value)
        assert best.offer(state, {"number": value, "some_samples": 10}) == (state.step in kept)
        assert float(load_file(best.path)["weight"]) == description(best.path)["value"]
    assert description(best.path)["step"] == kept[-1]
    assert not best.offer(state, {"another": 0.0})


def test_numbers_of_other_counts_or_metrics_are_not_compared(tmp_path: Path) -> None:
    path, state = tmp_path / "best.safetensors", State()
    assert Best(path, "number").offer(state, {"number": 1.0, "some_samples": 10})
    assert not Best(path, "number").offer(state, {"number": 2.0, "some_samples": 10})
    assert Best(path, "number").offer(state, {"number": 2.0, "some_samples": 20})
    assert Best(path, "other").offer(state, {"other": 9.0, "some_samples": 20})
    path.write_bytes(b"broken")
    assert Best(path, "other").offer(state, {"other": 10.0, "some_samples": 20})


@pytest.mark.slow
def test_the_best_validation_loss_is_kept_and_loaded_and_a_run_that_died_keeps_the_same(tmp_path: Path) -> None:
    settings = ("training.best=validation_loss", "training.validate_every=2", "training.learning_rate=0.02")
    whole, died = tmp_path / "whole", tmp_path / "died"
    train(tiny(whole, *settings))
    for event in tiny(died, *settings).train(preview=False):
        if event.step == 10:
            break  # its checkpoint is of step 6
    train(tiny(died, *settings))
    losses = {line["step"]: line["validation_loss"] for line in read_metrics(whole) if "validation_loss" in line}
    about = description(whole / "best.safetensors")
    assert about["step"] == min(losses, key=losses.__getitem__) and about["value"] == min(losses.values())
    assert (whole / "best.safetensors").read_bytes() == (died / "best.safetensors").read_bytes()
    held = load(whole, step="best").denoiser.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in load_file(whole / "best.safetensors").items())


def test_best_weights_that_were_not_kept_or_not_measured_are_refused(run: Path, call, refused, tmp_path: Path) -> None:
    refused(call("sample", run, "--step", "best", "--out", tmp_path / "x.png"), "training.best")
    refused(call("sample", run, "--step", "bets", "--out", tmp_path / "x.png"), "'bets'", "'best'")
    for value, words in {
        "validation_los": "did you mean 'validation_loss'",
        "frechet-distance": r"not measured by training.metrics=\[...\]: nothing is",
        "diversity": "neither lower nor higher",
    }.items():
        with pytest.raises(InputError, match=words):
            tiny(tmp_path / "run", f"training.best={value}")
    assert not (tmp_path / "run").exists()


def test_a_clock_that_is_stopped_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 20.0, 50.0, 60.0])
    monkeypatch.setattr("undiffuse.training.clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    clock = Clock()
    assert clock.now() == 10
    with clock.stopped():
        pass
    assert clock.now() == 30
