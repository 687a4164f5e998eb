"""Pictures that say how they were made, and are made again from it: `info PICTURE`, `sample --like PICTURE`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import undiffuse
from tiny import tiny, train
from undiffuse.classifying import ClassifierExperiment, ClassifierRecipe
from undiffuse.cli.request import Request

FEW = ("--n", 4, "--steps", 3)


def pixels(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        return np.load(path)["images"].astype(int)
    return np.asarray(Image.open(path)).astype(int)


def record(path: Path) -> dict:
    return json.loads(Image.open(path).text["undiffuse"])


def again(call, picture: Path, *options: object) -> Path:
    """The file that --like makes of a picture, beside it."""
    out = picture.with_name(f"again{picture.suffix}")
    code, _, err = call("sample", "--like", picture, "--out", out, "--overwrite", *options)
    assert code == 0, err
    assert "note" not in err, err
    return out


def assert_same(call, picture: Path, *options: object) -> None:
    theirs = pixels(picture)
    ours = pixels(again(call, picture, *options))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1


@pytest.fixture(scope="module")
def from_pictures(tmp_path_factory) -> Path:
    """A run that makes digits from smaller ones."""
    folder = tmp_path_factory.mktemp("conditioned") / "tiny"
    train(tiny(folder, "condition={low: {name: image, of: sample, factor: 2}}", "sampling.guidance=1", steps=4))
    return folder


@pytest.fixture(scope="module")
def guided(tmp_path_factory, run: Path) -> Path:
    """A copy of the run with a classifier, a snapshot and a fitted grid."""
    folder = tmp_path_factory.mktemp("guided") / "tiny"
    shutil.copytree(run, folder)
    quick = ["training.steps=2", "network.width=8", "training.batch_size=8", "training.precision=float32"]
    for _ in ClassifierExperiment(folder, ClassifierRecipe().changed(quick)).train():
        pass
    (folder / "snapshots").mkdir(exist_ok=True)
    shutil.copy(run / "model.safetensors", folder / "snapshots" / "step-00000004.safetensors")
    return folder


WAYS = {
    "plain": [],
    "labels": ["--label", "0,3-5", "--seed", 9],
    "guidance": ["--label", 3, "--guidance", 2.5],
    "interval and rescale": ["--label", 3, "--guidance", 3, "--interval", "-2,5", "--rescale", 0.7],
    "threshold": ["--label", 3, "--threshold", "dynamic:0.9", "--sequential"],
    "negative": ["-c", "label=3", "--guidance", 3, "--negative", "label=5"],
    "weak": ["--label", 3, "--guidance", 2, "--weak", "@4"],
    "classifier": ["--label", 3, "--guidance", 1, "--classifier", 2],
    "stochastic": ["--sampler", "DPM++ 2M SDE Karras", "--batch-size", 3],
    "solver": ["--sampler", "ddim:eta=0.5", "--grid", "log-snr"],
    "size": ["--size", "16x8"],
}
FAST = ("labels", "interval and rescale", "classifier", "stochastic")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_pictures_are_made_again_from_what_is_in_them(call, guided: Path, tmp_path: Path, name: str) -> None:
    """A grid, and one picture of a folder: the sample at its place, alone and in its own size."""
    for out in (tmp_path / "grid.png", tmp_path / "folder"):
        code, _, err = call("sample", guided, *FEW, *WAYS[name], "--out", out)
        assert code == 0, err
    assert_same(call, tmp_path / "grid.png", "--batch-size", 2)
    assert_same(call, tmp_path / "folder" / "00002.png")
    assert_same(call, tmp_path / "folder" / "again.png")  # and what was made again, too


def test_arrays_are_made_again(call, run: Path, tmp_path: Path) -> None:
    assert call("sample", run, *FEW, "--label", "1-2", "--out", tmp_path / "some.npz")[0] == 0
    assert_same(call, tmp_path / "some.npz")
    assert np.load(tmp_path / "again.npz")["labels"].tolist() == [1, 1, 2, 2]


def test_conditions_from_files_are_read_from_where_they_were(
    call, refused, from_pictures: Path, tmp_path: Path
) -> None:
    low = tmp_path / "low"
    low.mkdir()
    for i in range(4):
        Image.fromarray(np.full((4, 4), 60 * i, np.uint8)).save(low / f"{i}.png")
    for name, given in {"one.png": low / "3.png", "folder": low}.items():
        assert call("sample", from_pictures, *FEW, "-c", f"low={given}", "--out", tmp_path / name)[0] == 0
    assert_same(call, tmp_path / "one.png")
    assert_same(call, tmp_path / "folder" / "00002.png")
    changed = again(call, tmp_path / "one.png", "-c", f"low={low / '0.png'}")
    assert not np.array_equal(pixels(changed), pixels(tmp_path / "one.png"))
    (low / "3.png").unlink()
    refused(call("sample", "--like", tmp_path / "one.png", "--out", tmp_path / "x.png"), "low", str(low / "3.png"))


@pytest.mark.slow
def test_the_times_of_a_fitted_grid_are_in_the_picture(call, own_run: Path, tmp_path: Path) -> None:
    assert call("grid", own_run, "--steps", 3, "--n", 4)[0] == 0
    assert call("sample", own_run, *FEW, "--grid", "fitted", "--out", tmp_path / "x.png")[0] == 0
    assert_same(call, tmp_path / "x.png")
    shutil.rmtree(own_run / "grids")
    assert_same(call, tmp_path / "x.png")
    assert not np.array_equal(pixels(again(call, tmp_path / "x.png", "--grid", "uniform")), pixels(tmp_path / "x.png"))


def test_options_beside_a_picture_change_what_they_say(call, run: Path, tmp_path: Path) -> None:
    made, other = tmp_path / "made.png", tmp_path / "other.png"
    common = ["--sampler", "DPM++ 2M Karras", "--label", 3]
    assert call("sample", run, *FEW, *common, "--seed", 2, "--guidance", 2, "--out", made)[0] == 0
    changes = ["--steps", 5, "--seed", 7, "--label", 4]
    assert call("sample", run, "--n", 4, *common[:2], *changes, "--guidance", 2, "--out", other)[0] == 0
    assert np.abs(pixels(again(call, made, *changes)) - pixels(other)).max() <= 1
    facts = record(tmp_path / "again.png")
    assert (facts["sampler_name"], facts["grid"], facts["guidance"], facts["steps"]) == (common[1], "karras", 2, 5)
    again(call, made, "--sampler", "ddim")
    assert record(tmp_path / "again.png")["grid"] == "karras"  # the run's default


def test_changes_replace_what_they_change() -> None:
    base = Request(label="3", condition=("low=a.png", "thick=1"), row=(2, 4), grid="karras", times=[1.0, 0.0])
    changes = {
        "label": ({"label": "5"}, {"label": "5", "row": None}),
        "label as a condition": (
            {"condition": ["label=5"]},
            {"label": None, "condition": ("low=a.png", "thick=1", "label=5"), "row": None},
        ),
        "one condition": ({"condition": ["low=b.png"]}, {"condition": ("thick=1", "low=b.png"), "row": None}),
        "steps": ({"steps": 4}, {"steps": 4, "times": None}),
        "sampler": ({"sampler": "ddim"}, {"sampler": "ddim", "grid": None, "times": None}),
        "seed": ({"seed": 7, "n": None}, {"seed": 7}),
    }
    for given, expected in changes.values():
        assert base.changed(given).model_dump() == base.model_dump() | expected
    asked = Request(condition=("label=3",)).changed({"label": "4"})
    assert asked.label == "4" and asked.condition == ()


def test_more_like_one_of_a_folder_go_on_from_its_seed(call, run: Path, tmp_path: Path) -> None:
    assert call("sample", run, *FEW, "--label", "0-3", "--seed", 5, "--out", tmp_path / "folder")[0] == 0
    assert call("sample", run, *FEW, "--label", 2, "--seed", 7, "--out", tmp_path / "four.npz")[0] == 0
    code, _, err = call("sample", "--like", tmp_path / "folder" / "00002.png", "--n", 4, "--out", tmp_path / "more.npz")
    assert code == 0, err
    assert np.abs(pixels(tmp_path / "more.npz") - pixels(tmp_path / "four.npz")).max() <= 1


def test_info_tells_how_a_picture_was_made(call, refused, run: Path, tmp_path: Path) -> None:
    for name in ("grid.png", "arrays.npz", "folder"):
        assert call("sample", run, *FEW, "--label", "0-3", "--seed", 5, "--out", tmp_path / name)[0] == 0
    for name, index in {"grid.png": None, "arrays.npz": None, "folder/00002.png": 2, "folder": "0-3"}.items():
        code, out, err = call("info", tmp_path / name, "--json")
        assert code == 0, err
        facts = json.loads(out)
        expected = {"recipe": "digits", "run": str(run), "n": 4, "seed": 5, "label": "0-3", "steps": 3, "size": "8x8"}
        assert expected.items() <= facts.items() and facts.get("index") == index
        assert facts["precision"] == "float32" and facts["undiffuse"] == undiffuse.__version__
        assert {"guidance", "sampler", "grid", "weights"} <= facts.keys()
    assert "sampler_name" in call("info", tmp_path / "grid.png")[1]
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    refused(call("info", tmp_path / "plain.png"), "plain.png carries no metadata of undiffuse")
    refused(call("info", tmp_path / "nothing.png"), "nothing.png")


def test_what_cannot_be_made_again_is_said_in_one_line(call, refused, own_run: Path, tmp_path: Path) -> None:
    assert call("sample", own_run, *FEW, "--out", tmp_path / "x.png")[0] == 0
    like, out = ("sample", "--like", tmp_path / "x.png"), ("--out", tmp_path / "y.png")
    refused(call("sample", *out), "give RUN", "--like PICTURE")
    moved = own_run.rename(tmp_path / "moved")
    refused(call(*like, *out), f"made from {own_run}", "give RUN")
    code, _, err = call("sample", moved, *like[1:], *out)
    assert code == 0 and np.array_equal(pixels(tmp_path / "y.png"), pixels(tmp_path / "x.png")), err
    for text, words in {
        None: ["no metadata"],
        "[1": ["cannot be read"],
        '{"between": "0,1"}': ["was not made by `undiffuse sample`"],
        '{"n": "many", "seed": 0, "sampler_name": "ddim"}': ["n='many'", "integer"],
        '{"n": 4, "seed": 0, "sampler_name": "ddimm", "run": ' + json.dumps(str(moved)) + "}": ["mean 'ddim'"],
        '{"n": 4, "seed": 0, "sampler_name": "ddim", "steps": 2, "times": [0, 1, 2], "run": '
        + json.dumps(str(moved)) + "}": ["no time grid"],
    }.items():  # fmt: skip
        chunks = PngInfo()
        if text is not None:
            chunks.add_text("undiffuse", text)
        Image.new("L", (8, 8)).save(tmp_path / "bad.png", pnginfo=chunks)
        refused(call("sample", "--like", tmp_path / "bad.png", "--out", tmp_path / "z.png"), *words)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but no picture")
    refused(call("sample", "--like", tmp_path / "bad.png", "--out", tmp_path / "z.png"), "cannot read", "bad.png")


def test_other_weights_and_versions_are_noted(call, own_run: Path, run: Path, tmp_path: Path, monkeypatch) -> None:
    assert call("sample", own_run, *FEW, "--out", tmp_path / "x.png")[0] == 0
    from safetensors.torch import load_file, save_file

    weights = load_file(own_run / "model.safetensors")
    save_file({k: v * 1.01 if v.is_floating_point() else v for k, v in weights.items()}, own_run / "model.safetensors")
    monkeypatch.setattr(undiffuse, "__version__", "0.2.0")
    code, _, err = call("sample", "--like", tmp_path / "x.png", "--out", tmp_path / "y.png")
    assert code == 0 and err.count("note: ") == 2 and "other weights" in err and "0.2.0: another version" in err
