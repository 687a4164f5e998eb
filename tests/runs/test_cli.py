"""The command line: in-process, with its files, its one-line errors and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import TINY
from undiffuse.cli.conditions import parse_labels
from undiffuse.errors import InputError

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
COMMANDS = [
    "demo",
    "train",
    "train-classifier",
    "sample",
    "interpolate",
    "evaluate",
    "compare",
    "grid",
    "plot",
    "info",
    "samplers",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: undiffuse {command}" in out


def test_print_shows_the_whole_recipe_and_trains_nothing(call: Call, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("train", "mnist", "training.minutes=3", "--print")
    assert code == 0
    assert "minutes: 3.0" in out
    assert "path: mnist.npz" in out
    assert not list(tmp_path.iterdir())


def test_train_sample_info(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["train", "digits", *TINY, "training.steps=6", f"run={folder}", "--json"]
    code, out, err = call(*command)
    assert code == 0, err
    assert json.loads(out)["steps"] == 6
    code, out, err = call(*command)
    assert code == 0
    assert "trained already" in err
    code, out, _ = call("info", folder, "--json")
    assert json.loads(out)["shape"] == [1, 8, 8]
    assert (folder / "samples" / "step-00000006.png").is_file()


def test_out_decides_by_its_ending(call: Call, run: Path, tmp_path: Path) -> None:
    common = ["sample", run, "--n", 20, "--steps", 2, "--label", "0-9", "--seed", 5]
    code, out, err = call(*common, "--out", tmp_path / "grid.png", "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == 20
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (2 * 33 - 1, 10 * 33 - 1)  # one row per class
    assert json.loads(picture.info["undiffuse"])["seed"] == 5
    assert call(*common, "--out", tmp_path / "samples.npz")[0] == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["images"].shape == (20, 8, 8)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [i // 2 for i in range(20)]
    assert call(*common, "--out", tmp_path / "pictures")[0] == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 20


def test_an_output_that_exists_is_kept(call: Call, refused: Refused, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    path.write_bytes(b"mine")
    refused(call("sample", run, "--n", 1, "--out", path), "grid.png", "exists")
    assert path.read_bytes() == b"mine"
    assert call("sample", run, "--n", 1, "--steps", 1, "--out", path, "--overwrite")[0] == 0
    assert path.read_bytes() != b"mine"


def test_bad_input_ends_in_one_line_and_code_2(call: Call, refused: Refused, run: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "x.png"]
    refused(call("train", "digitz"), "'digitz'", "did you mean 'digits'")
    refused(call("train", "digits", "training.stepz=4"), "did you mean 'training.steps'")
    refused(call("train", "digits", "network.widht=4", f"run={tmp_path / 'r'}"), "did you mean 'width'")
    refused(call("train", "folder", f"data.path={tmp_path / 'none'}", f"run={tmp_path / 'r'}"), "none")
    refused(call("train", "mnist", f"data.path={tmp_path / 'no.npz'}", f"run={tmp_path / 'r'}"), "no.npz")
    refused(call("sample", tmp_path / "nowhere", *out), "not a run folder")
    refused(call("sample", run, "--label", "10", *out), "unknown class '10'", "7, 8, 9")
    refused(call("sample", run, "--label", "cat", *out), "unknown class 'cat'")
    refused(call("sample", run, "--sampler", "ddimm", *out), "did you mean 'ddim'")
    refused(call("sample", run, "--n", "0", *out), "at least 1")
    refused(call("sample", run, "--n", "many", *out), "--n", "integer")
    refused(call("sample", run, "--out", tmp_path / "x.bmp"), ".bmp")
    refused(call("sample", run, "--nn", "3", *out), "--nn")
    refused(call("plot", "schedule"), "did you mean 'schedules'")
    refused(call("demo", "--seconds", "3"), "at least 20")
    refused(call("evaluate", tmp_path), "not a run folder")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_said_in_one_line(
    call: Call, refused: Refused, run: Path, tmp_path: Path, monkeypatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("undiffuse.files.os.fsync", full)
    refused(call("sample", run, "--n", 1, "--steps", 1, "--out", tmp_path / "x.png"), "x.png", "No space left")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["schedules", "forward", "grids"])
def test_plots_are_drawn(call: Call, run: Path, tmp_path: Path, what: str) -> None:
    for arguments in ([], [run]):
        path = tmp_path / f"{what}{len(arguments)}.png"
        code, _, err = call("plot", what, *arguments, "--out", path)
        assert code == 0, err
        assert Image.open(path).size[0] > 100


def test_evaluate_writes_the_report(call: Call, run: Path, hasty: None) -> None:
    code, out, err = call("evaluate", run, "--n", 20, "--sweep-n", 8, "--guidance", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["samples"]["guidance"] == 2
    written = json.loads((run / "evaluation.json").read_text())
    assert "grid" in written.pop("pictures") and json.loads(out) == written
    assert (run / "report.html").is_file()


def test_a_folder_of_two_hundred_colour_pictures_trains_and_samples(
    call: Call, refused: Refused, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name, colour in (("red", (220, 40, 40)), ("blue", (40, 40, 220))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(100):
            height, width = rng.integers(20, 60, 2)
            pixels = np.clip(np.array(colour) + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    folder = tmp_path / "run"
    overrides = [*TINY, "training.steps=8", "network.multipliers=[1,2]", "network.attention=[false,true]"]
    overrides += [f"data.path={tmp_path / 'photos'}", "image.size=16", "condition=label", f"run={folder}"]
    code, _, err = call("train", "folder", *overrides)
    assert code == 0, err
    code, _, err = call("sample", folder, "--label", "red", "--n", 3, "--steps", 2, "--out", tmp_path / "r.npz")
    assert code == 0, err
    with np.load(tmp_path / "r.npz") as arrays:
        assert arrays["images"].shape == (3, 16, 16, 3)
        assert arrays["labels"].tolist() == [1, 1, 1]
    (tmp_path / "photos" / "red" / "broken.png").write_bytes(b"")
    other = [override for override in overrides if not override.startswith("run=")] + [f"run={tmp_path / 'other'}"]
    refused(call("train", "folder", *other), "broken.png", "skip_corrupt")
    assert not (tmp_path / "other").exists()
    code, _, err = call("train", "folder", *other, "data.skip_corrupt=true")
    assert code == 0
    assert "skipped 1 corrupt files" in err


def test_arrays_without_labels_and_in_colour_train(call: Call, refused: Refused, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", images=images)
    folder = tmp_path / "run"
    overrides = [*TINY, "training.steps=4", "image.channels=3", "network.patch=1", "condition=none"]
    code, _, err = call("train", "mnist", *overrides, f"data.path={tmp_path / 'colour.npz'}", f"run={folder}")
    assert code == 0, err
    refused(call("sample", folder, "--label", "1", "--out", tmp_path / "x.png"), "no classes")
    assert call("sample", folder, "--n", 2, "--steps", 2, "--out", tmp_path / "x.png")[0] == 0


def test_labels_are_read_in_every_form() -> None:
    classes = ("cat", "dog", "eel")
    assert parse_labels("0-2", classes) == [0, 1, 2]
    assert parse_labels("2, 0", classes) == [2, 0]
    assert parse_labels("dog,eel", classes) == [1, 2]
    with pytest.raises(InputError, match="did you mean 'dog'"):
        parse_labels("dgo", classes)
    with pytest.raises(InputError, match="label 3"):
        parse_labels("0-3", classes)


def test_numbers_are_names_where_all_classes_are_numbers() -> None:
    assert parse_labels("2-3", ("1", "2", "3")) == [1, 2] and parse_labels("1", ("1", "2", "3")) == [0]
    for text in ("0", "1-4", "²", "0-99999999999"):
        with pytest.raises(InputError, match="unknown class"):
            parse_labels(text, ("1", "2", "3"))
    assert parse_labels("a,b", ("a,b", "c")) == [0]


def test_every_schedule_is_drawn(call: Call, tmp_path: Path) -> None:
    code, _, err = call("plot", "schedules", "--out", tmp_path / "schedules.png")
    assert code == 0, err
    assert Image.open(tmp_path / "schedules.png").width > 500


def test_how_samples_were_computed_is_written_beside_them(call: Call, run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    written = []
    for name, options in {"plain.png": [], "compiled.png": ["--compile"]}.items():
        code, out, _ = call("sample", run, "--n", 5, "--steps", 3, "--out", tmp_path / name, "--json", *options)
        said, facts = json.loads(out), json.loads(Image.open(tmp_path / name).text["undiffuse"])
        assert code == 0 and said["device"] == facts["device"] and facts["precision"] == "float32"
        assert (said["warmup_seconds"] > 0) == bool(options) and "warmup_seconds" not in facts
        written.append(facts.pop("compile"))
    assert written == [False, True]


@pytest.mark.slow
def test_compiled_samples_and_evaluations_from_the_command_line(
    call: Call, own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is the same to rounding (tests/adapters); here it is the same, and takes no minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    how = ("sample", own_run, "--n", 7, "--batch-size", 4, "--label", 3, "--steps", 3, "--guidance", 2)
    for name, options in {"plain.npz": [], "compiled.npz": ["--compile"]}.items():
        assert call(*how, "--out", tmp_path / name, *options)[0] == 0
    plain, compiled = (np.load(tmp_path / name)["images"].astype(int) for name in ("plain.npz", "compiled.npz"))
    assert np.abs(plain - compiled).max() <= 1
    code, out, _ = call("evaluate", own_run, "--n", 10, "--sweep-n", 4, "--compile", "--json")
    assert code == 0 and json.loads(out)["samples"]["compile"] is True
