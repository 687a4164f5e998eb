"""undiffuse interpolate: rows between seeds and between pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import undiffuse as ud

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]


def test_the_ends_of_a_row_are_the_pictures_of_the_seeds(call: Call, run: Path, tmp_path: Path) -> None:
    how = ("--seeds", "3,8", "--steps-between", 4, "--label", 7, "--steps", 5)
    code, out, err = call("interpolate", run, *how, "--out", tmp_path / "row.npz", "--json")
    assert code == 0, err
    with np.load(tmp_path / "row.npz") as arrays:
        row = arrays["images"].astype(int)
    assert row.shape == (6, 8, 8)
    model = ud.load(run)
    for end, seed in ((0, 3), (-1, 8)):
        alone = model.sample(1, label=7, steps=5, seed=seed)[0].astype(int)
        assert np.abs(row[end] - alone).max() <= 1
    facts = json.loads(out)
    assert (facts["between"], facts["guidance"], facts["steps"]) == ("3,8", 1.25, 5)
    steps = np.abs(np.diff(row, axis=0)).mean((1, 2))
    assert steps.max() < np.abs(row[0] - row[-1]).mean()


def test_a_row_is_one_line_of_a_png(call: Call, run: Path, tmp_path: Path) -> None:
    code, _, err = call("interpolate", run, "--seeds", "0,1", "--steps", 2, "--out", tmp_path / "row.png")
    assert code == 0, err
    picture = Image.open(tmp_path / "row.png")
    assert picture.size == (10 * 33 - 1, 32)
    assert json.loads(picture.info["undiffuse"])["between"] == "0,1"


def saved(folder: Path, name: str, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_pictures_come_back_but_for_the_round_trip_error(call: Call, run: Path, tmp_path: Path) -> None:
    held_out = ud.load(run).sample(2, label=3, seed=20)  # what the model makes, it can invert
    paths = [saved(tmp_path, f"{i}.png", picture) for i, picture in enumerate(held_out)]
    images = f"{paths[0]}, {paths[1]}"
    found = []
    for steps in (4, 40):
        how = ("--images", images, "--label", 3, "--steps", steps, "--grid", "angle", "--steps-between", 1)
        code, out, err = call("interpolate", run, *how, "--out", tmp_path / f"{steps}.npz", "--json")
        assert code == 0, err
        found.append(json.loads(out)["round_trip"])
    assert found[0][0] > 2 * found[1][0] > 0
    with np.load(tmp_path / "40.npz") as arrays:
        row = arrays["images"].astype(float)
    for end, picture, error in ((0, held_out[0], found[1][0]), (-1, held_out[1], found[1][1])):
        difference = np.sqrt(np.square((row[end] - picture) / 127.5).mean())
        assert abs(difference - error) < 0.01  # rounding to bytes, and what lies outside them
    code, _, err = call("interpolate", run, "--images", images, "--steps", 4, "--out", tmp_path / "row.png")
    assert code == 0
    assert "round-trip error" in err


def test_bad_input_is_refused_before_any_work(
    call: Call, run: Path, tmp_path: Path, monkeypatch, refused: Refused
) -> None:
    monkeypatch.setattr("undiffuse.samplers.walk", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr("undiffuse.editing.invert", lambda *_: pytest.fail("work was done"))
    grey = saved(tmp_path, "grey.png", np.zeros((8, 8), np.uint8))
    large = saved(tmp_path, "large.png", np.zeros((9, 8), np.uint8))
    colour = saved(tmp_path, "colour.png", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    (tmp_path / "text.png").write_text("no picture")
    out, two = ("--out", tmp_path / "row.png"), ("--seeds", "0,1")
    before = sorted(tmp_path.iterdir())
    refused(call("interpolate", run, *out), "--seeds A,B or --images")
    refused(call("interpolate", run, *two, "--images", "a,b", *out), "one of them")
    refused(call("interpolate", run, "--seeds", "0,1,2", *out), "--seeds takes two", "3")
    refused(call("interpolate", run, "--seeds", "0,x", *out), "'0,x'")
    refused(call("interpolate", run, "--seeds", "0,-1", *out), "'0,-1'")
    refused(call("interpolate", run, "--seeds", f"0,{2**63}", *out), "--seeds", f"below {2**63}")
    refused(call("interpolate", run, *two, "--steps-between", -1, *out), "--steps-between", "-1")
    refused(call("interpolate", run, *two, "--sampler", "Euler a", *out), "without noise")
    refused(call("interpolate", run, *two, "--label", "1,2", *out), "one class", "2")
    refused(call("interpolate", run, *two, "--guidance", 2, *out), "needs a condition")
    refused(call("interpolate", run, "--images", f"{grey}", *out), "--images takes two", "1")
    refused(call("interpolate", run, "--images", f"{grey},{tmp_path / 'no.png'}", *out), "no.png")
    refused(call("interpolate", run, "--images", f"{grey},{tmp_path / 'text.png'}", *out), "text.png")
    refused(call("interpolate", run, "--images", f"{grey},{large}", *out), "large.png is 9x8", "takes 8x8")
    refused(call("interpolate", run, "--images", f"{grey},{colour}", *out), "colour.png has colours", "1 channel")
    refused(call("interpolate", run, *two, "--out", grey), "exists already")
    assert sorted(tmp_path.iterdir()) == before
