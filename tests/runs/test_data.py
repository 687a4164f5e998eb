"""Runs on a folder that is not kept in memory: the same bits, the time that it took, and one line for what breaks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tiny import TINY, train
from undiffuse import experiment, judge, pipeline, recipes
from undiffuse.cli.train import waiting
from undiffuse.data import folder
from undiffuse.data.pictures import Pictures
from undiffuse.experiment import Experiment
from undiffuse.training import read_metrics

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
CHANGES = [
    *TINY, "image.size=[8,12]", "image.crop=random", "condition=label", "data.held_out=0.3", "training.steps=12",
    "training.batch_size=6", "network.multipliers=[1]", "network.attention=[false]", "network.patch=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "photos"
    for i in range(20):
        path = root / ("red", "blue")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8)).save(path)
    return root


def made(photos: Path, run: Path, *changes: str) -> Experiment:
    recipe = recipes.named("folder").changed([f"data.path={photos}", *CHANGES, *changes])
    return Experiment(recipe, run)


def assert_same_model(a: Path, b: Path) -> None:
    ours, theirs = (load_file(run / "model.safetensors") for run in (a, b))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_is_the_same_from_memory_and_from_files_stopped_and_resumed(photos: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "memory", tmp_path / "files"
    train(made(photos, whole, "data.memory=always"))
    train(made(photos, halves, "data.memory=never", "data.workers=2"), until=5)
    stopped = made(photos, halves, "data.memory=auto", "data.workers=1")  # how data are read is no part of a run
    assert stopped.resumed and stopped.state.step < 12
    assert not pipeline.read_spec(halves)["resolved"]["samples_in_memory"]  # the first session's
    train(stopped)
    assert_same_model(whole, halves)
    resolved = [pipeline.read_spec(run)["resolved"] for run in (whole, halves)]
    assert resolved[0] | {"samples_in_memory": False} == resolved[1]
    lines = [
        [line for line in read_metrics(run) if "loss" in line or "validation_loss" in line] for run in (whole, halves)
    ]
    assert [line.get("validation_loss") for line in lines[0]][-1] == [line.get("validation_loss") for line in lines[1]][
        -1
    ]
    assert all(0 <= line["data_share"] <= 1 for run in lines for line in run if "loss" in line)


def test_a_run_that_is_older_than_these_options_goes_on(photos: Path, tmp_path: Path) -> None:
    train(made(photos, tmp_path / "run"), until=5)
    recipe = tmp_path / "run" / "recipe.yaml"
    names = ("  memory: auto\n", "  workers: null\n", "  samples_in_memory: true\n")
    text = recipe.read_text()
    for name in names:
        assert text.count(name) == 1
        text = text.replace(name, "")
    recipe.write_text(text)
    assert made(photos, tmp_path / "run", "data.memory=never").resumed


def test_the_program_says_where_the_time_went(call: Call, photos: Path, tmp_path: Path) -> None:
    command = ["train", "folder", f"data.path={photos}", *CHANGES, f"run={tmp_path / 'run'}", "--json"]
    code, out, err = call(*command, "data.memory=never", "data.workers=2")
    assert code == 0, err
    lines = [line for line in err.splitlines() if "of the time was spent waiting for data" in line]
    share = json.loads(out)["data_share"]
    assert lines == [waiting(share, False, 1)] or abs(float(lines[0].split()[0]) / 100 - share) < 1e-3
    assert "14 samples of 3x8x12 decoded from files" in " ".join(err.split())


def test_much_waiting_is_worth_a_hint() -> None:
    assert waiting(0.0123, False, 100) == "1.2 % of the time was spent waiting for data"
    assert waiting(0.5, True, 100) == "50.0 % of the time was spent waiting for data"
    assert "data.workers=" in waiting(0.101, False, 100)
    assert "data.workers=" not in waiting(0.101, False, 10)  # in which the workers start


def test_a_file_that_breaks_during_training_is_one_line(
    call: Call, refused: Refused, photos: Path, tmp_path: Path
) -> None:
    for file in photos.rglob("*.jpg"):
        copy = tmp_path / "photos" / file.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    split = folder.load(tmp_path / "photos", (8, 12), conditions={"label": "label"}, held_out=0.3, memory="never")
    assert isinstance(split.train.samples, Pictures)
    file = Path(split.train.samples._files[-1].decode())
    real, found = experiment.Feed.batch, []

    def batch(self: experiment.Feed, step: int) -> object:
        found.append(step)
        if step == 0:
            file.write_bytes(file.read_bytes()[:200])
        return real(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Feed, "batch", batch)
        changes = [*CHANGES, f"data.path={tmp_path / 'photos'}", "data.memory=never", "data.workers=2"]
        result = call("train", "folder", *changes, f"run={tmp_path / 'run'}")
    refused(result, str(file), "data.skip_corrupt=true")
    assert found


def test_options_that_cannot_be_are_refused(call: Call, refused: Refused, photos: Path, tmp_path: Path) -> None:
    refused(call("train", "digits", "data.memory=never", f"run={tmp_path / 'run'}"), "data.memory=never", "'digits'")
    refused(call("train", "digits", "data.memory=none"), "data.memory", "'auto', 'always' or 'never'")
    refused(call("train", "digits", "data.workers=-1"), "data.workers=-1", "greater than or equal to 0")
    refused(call("train", "digits", "data.worker=1"), "data.workers")


def test_a_part_stands_for_a_large_set_and_is_the_same_both_ways(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "MOST_MEASURED", 5 * 3 * 8 * 8)
    monkeypatch.setattr(judge, "MOST_JUDGED", 6 * 3 * 8 * 8)
    ways = [folder.load(photos, (8, 8), conditions={"label": "label"}, memory=memory) for memory in ("always", "never")]
    rows = [experiment._measured(way.train) for way in ways]
    assert len(rows[0]) == 5 and torch.equal(*rows) and rows[0].tolist() != list(range(5))
    judged = [judge._judged_by(way.train) for way in ways]
    assert len(judged[0]) == 6 and torch.equal(*(part.samples[:] for part in judged))
    assert torch.equal(*(part.label for part in judged)) and len(judged[0].label.unique()) == 2
    assert judge._judged_by(ways[1].held_out) is ways[1].held_out


@pytest.mark.slow
def test_what_else_reads_the_data_reads_files_too(call: Call, photos: Path, tmp_path: Path) -> None:
    numbers = []
    for memory in ("always", "never"):
        run = tmp_path / memory
        train(made(photos, run, f"data.memory={memory}"))
        call_ = ["evaluate", run, "--n", 4, "--json"]
        code, out, err = call(*call_)
        assert code == 0, err
        found = json.loads(out)
        numbers.append({name: found[name] for name in ("measurements", "real", "likelihood", "levels")})
        code, out, err = call("train-classifier", run, "training.steps=6", "training.batch_size=8", "--json")
        assert code == 0 and "of the time was spent waiting for data" in err, err
        numbers[-1]["accuracy"] = json.loads(out)["accuracy"]
        assert call("plot", "forward", run, "--out", tmp_path / f"{memory}.png")[0] == 0
        assert call("compare", run, "--samplers", "ddim", "--steps", 2, "--n", 4)[0] == 0
    assert numbers[0] == numbers[1]
    assert (tmp_path / "always.png").read_bytes() == (tmp_path / "never.png").read_bytes()
