"""Going on where a run stopped: the same bits as a run that never did, whatever ended it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tiny import TINY, tiny, train
from undiffuse import InputError, files, load
from undiffuse.data.feed import Feed
from undiffuse.training import checkpoints, read_metrics


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder)[-1])


def assert_same_bits(a: Path, b: Path) -> None:
    for ours, theirs in ((weights(a), weights(b)), *[[load_file(f / "model.safetensors") for f in (a, b)]]):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name


def test_training_2k_steps_equals_k_stop_resume_k(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(tiny(whole))
    train(tiny(halves), until=5)
    stopped = tiny(halves)
    assert stopped.resumed
    assert 5 <= stopped.state.step < 12
    train(stopped)
    assert_same_bits(whole, halves)
    losses = [[line["loss"] for line in read_metrics(folder) if "loss" in line] for folder in (whole, halves)]
    assert losses[0][0] == losses[1][0]
    assert [line["step"] for line in read_metrics(whole)][-1] == 12


def test_snapshots_are_kept_and_loaded_by_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(folder, "training.snapshot_every=4"))
    assert [path.name for path in sorted((folder / "snapshots").iterdir())] == [
        f"step-{step:08d}.safetensors" for step in (4, 8, 12)
    ]
    first, last = load_file(folder / "snapshots" / "step-00000004.safetensors"), load_file(folder / "model.safetensors")
    loaded = load(folder, step=4).denoiser.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in first.items())
    assert any(not torch.equal(value, last[name]) for name, value in first.items())
    with pytest.raises(InputError, match="no snapshot of step 5: kept are 4, 8, 12"):
        load(folder, step=5)
    plain = tmp_path / "plain"
    train(tiny(plain), until=5)
    with pytest.raises(InputError, match=r"training\.snapshot_every"):
        load(plain, step=5)


def test_a_run_that_is_older_than_an_option_goes_on(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"), until=5)
    recipe = tmp_path / "run" / "recipe.yaml"
    text = recipe.read_text()
    assert "  snapshot_every: null\n" in text
    recipe.write_text(text.replace("  snapshot_every: null\n", ""))
    assert tiny(tmp_path / "run").resumed


def test_a_run_of_an_older_version_or_another_machine_goes_on(tmp_path: Path) -> None:
    """Its folder says nothing of the fast settings; its data came out a little different; an option may be changed."""
    folder = tmp_path / "run"
    train(tiny(folder), until=5)
    held = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name in ("device", "compile", "kernels", "samples_in_memory"):
        del held["resolved"][name]
    del held["training"]["compile"]
    std = held["resolved"]["data_std"] = round(held["resolved"]["data_std"] * 1.005, 4)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(held, sort_keys=False))
    again = tiny(folder, "training.compile=false")
    assert again.resumed and again.pipeline.denoiser.data_std == std
    train(again)
    assert again.finished and again.settings["compile"] is False
    held["resolved"]["data_std"] = 2 * std
    (folder / "recipe.yaml").write_text(yaml.safe_dump(held, sort_keys=False))
    with pytest.raises(InputError, match="data_std"):
        tiny(folder)


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    again = tiny(tmp_path / "run")
    assert again.finished
    assert not list(again.train())


def test_the_average_and_optimizer_are_restored(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    again = tiny(tmp_path / "run")
    saved = weights(tmp_path / "run")
    for name, value in again.state.average.state_dict().items():
        assert torch.equal(value, saved[f"average.{name}"])
    moment = next(iter(again.state.optimizer.state.values()))
    assert float(moment["step"]) == 12


PROGRAM = "import sys; from undiffuse.cli import main; main(sys.argv[1:])"


def start(folder: Path, *extra: str, steps: int = 60) -> subprocess.Popen[bytes]:
    overrides = [*TINY, f"training.steps={steps}", "training.checkpoint_every=3", f"run={folder}", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, "train", "digits", *overrides], env=environment)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if checkpoints(folder) or process.poll() is not None:
            return
        time.sleep(0.05)
    pytest.fail("no checkpoint in 60 s")


def kill_and_resume(tmp_path: Path, delay: float) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed)
    wait_for_checkpoint(killed, process)
    time.sleep(delay)
    process.kill()
    process.wait()
    assert start(killed).wait(120) == 0
    if not whole.exists():
        assert start(whole).wait(120) == 0
    assert_same_bits(whole, killed)
    steps = [line["step"] for line in read_metrics(killed) if "loss" in line]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_a_run_killed_at_a_random_moment_resumes(tmp_path: Path, attempt: int) -> None:
    kill_and_resume(tmp_path, random.Random(attempt).uniform(0, 2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path / "run", steps=100_000)
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    resumed = tiny(tmp_path / "run", "training.checkpoint_every=3", steps=100_000)
    assert resumed.resumed
    assert f"step-{resumed.state.step:08d}" == checkpoints(tmp_path / "run")[-1].stem
    assert all(line["step"] <= resumed.state.step for line in read_metrics(tmp_path / "run"))


def test_a_budget_in_minutes_becomes_a_recorded_step_count(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", "training.minutes=0.03", steps=None)
    train(experiment)
    total = experiment.state.total
    assert total is not None
    assert total == experiment.state.step
    assert [line["total_steps"] for line in read_metrics(tmp_path / "run") if "total_steps" in line] == [total]
    again = tiny(tmp_path / "run", "training.minutes=0.03", steps=None)
    assert again.finished
    assert again.state.total == total


def test_a_budget_is_paced_over_enough_steps_also_after_a_resume(tmp_path: Path) -> None:
    overrides = ("training.minutes=0.05", "training.warmup=2")
    train(tiny(tmp_path / "run", *overrides, steps=None), until=5)
    again = tiny(tmp_path / "run", *overrides, steps=None)
    train(again)
    assert again.state.step > 25  # not the few that were left of the warm-up
    assert again.state.seconds > 1.5


def test_a_run_that_dies_between_checkpoint_and_model_writes_the_model_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(tmp_path / "run")
    monkeypatch.setattr(experiment.run, "_save_model", lambda: (_ for _ in ()).throw(InputError("dies here")))
    with pytest.raises(InputError, match="dies here"):
        train(experiment)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    again = tiny(tmp_path / "run")
    assert again.resumed
    average = again.state.average.state_dict()
    assert all(torch.equal(v, average[k]) for k, v in load_file(tmp_path / "run" / "model.safetensors").items())


def test_a_full_disk_under_the_log_is_said(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"metrics.jsonl: No space left on device"):
        train(experiment)


def test_leftovers_of_a_killed_write_are_no_reason_to_refuse(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".recipe-x.partial.yaml").write_text("half")
    tiny(folder)
    assert not list(folder.glob(".*"))


def test_a_refused_folder_keeps_every_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".thesis.partial.docx").write_text("mine too")
    with pytest.raises(InputError, match="not a run folder"):
        tiny(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lost_model_is_written_again_and_a_lost_checkpoint_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(folder))
    model = folder / "model.safetensors"
    held = load_file(model)
    model.unlink()
    tiny(folder)
    assert all(torch.equal(value, held[name]) for name, value in load_file(model).items())
    for checkpoint in checkpoints(folder):
        checkpoint.unlink()
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        tiny(folder)
    assert read_metrics(folder)


def test_nan_is_named_and_never_saved_over_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(tmp_path / "run")
    clean = Feed.batch

    def poisoned(feed: Feed, step: int):
        samples, conditions, seeds = clean(feed, step)
        return samples * (float("nan") if step == 8 else 1), conditions, seeds

    monkeypatch.setattr(Feed, "batch", poisoned)
    with pytest.raises(InputError, match="NaN or infinite at step 9"):
        train(experiment)
    good = checkpoints(tmp_path / "run")[-1]
    assert good.stem == "step-00000006"
    assert all(value.isfinite().all() for value in load_file(good).values())


def test_another_recipe_in_the_folder_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"training.learning_rate is 0.001 there and 0.5 here"):
        tiny(run, "training.learning_rate=0.5")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not a run folder"):
        tiny(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letter.txt"]


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    path = checkpoints(tmp_path / "run")[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"step-00000012.safetensors is truncated"):
        tiny(tmp_path / "run")


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    path = checkpoints(tmp_path / "run")[-1]
    save_file(load_file(path), path, {"undiffuse": json.dumps({"format": 99, "step": 12, "total": 12, "seconds": 1})})
    with pytest.raises(InputError, match="newer undiffuse"):
        tiny(tmp_path / "run")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(tmp_path / "run")
    train(experiment, until=5)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        experiment.run.save()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
