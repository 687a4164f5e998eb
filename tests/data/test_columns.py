"""Conditions in arrays and tables become tensors with a row per sample, or are refused by name."""

import numpy as np
import pytest
import torch

from undiffuse.conditioning import CONDITIONS
from undiffuse.data import arrays, columns
from undiffuse.errors import InputError

IMAGES = np.zeros((6, 4, 4), np.uint8)
random = np.random.default_rng(0)
ARRAYS = {
    "label": np.array([0, 2, 1, 0, 1, 2]),
    "labels": random.integers(0, 2, (6, 3)),
    "vector": random.normal(size=(6, 3)),
    "image": random.integers(0, 256, (6, 2, 2), dtype=np.uint8),
    "encoded-image": random.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8),
    "mask": random.integers(0, 3, (6, 4, 4)),
    "tokens": np.array([[1, 2, -1], [0, -1, -1], [3, 3, 3], [1, 1, -1], [2, 0, 1], [0, 0, 0]]),
    "embeddings": random.normal(size=(6, 2, 5)).astype(np.float16),
}


@pytest.mark.parametrize("kind", [name for name, kind in CONDITIONS.items() if not kind.told])
def test_every_kind_is_read_from_arrays_and_by_its_condition(tmp_path, kind):
    assert kind in columns.KINDS
    np.savez(tmp_path / "data.npz", images=IMAGES, mine=ARRAYS[kind])
    parts = arrays.load(tmp_path / "data.npz", 0.5, {"mine": kind})
    values, classes = parts.train.conditions["mine"], parts.train.classes.get("mine", ())
    facts = CONDITIONS[kind].facts(values, parts.held_out.conditions["mine"], classes)
    width = {"width": 8} if CONDITIONS[kind].feeds == "vector" else {}
    part = CONDITIONS[kind](**width, **facts)
    assert torch.equal(part.read(values), values.long() if kind == "mask" else values)
    assert len(part(part.read(values))) == len(values) == 3
    part.read(parts.held_out.conditions["mine"])  # what is held out is known too


def test_two_labels_with_names_of_their_own(tmp_path):
    np.savez(
        tmp_path / "data.npz", images=IMAGES, digits=ARRAYS["label"], digit_classes=["a", "b", "c"],
        hand=np.array(["left", "right"] * 3),
    )  # fmt: skip
    parts = arrays.load(tmp_path / "data.npz", 0.5, {"digit": "label", "hand": {"name": "label"}})
    assert parts.train.classes == {"digit": ("a", "b", "c"), "hand": ("left", "right")}
    both = torch.cat([parts.train.conditions["hand"], parts.held_out.conditions["hand"]])
    assert sorted(both.tolist()) == [0, 0, 0, 1, 1, 1]
    assert parts.held_out.conditions["digit"].unique().numel() == 3  # every class of the first label alike


@pytest.mark.parametrize("name", ["image", "split", "images"])
def test_the_samples_are_no_condition_whatever_it_is_called(tmp_path, name):
    np.savez(tmp_path / "data.npz", images=IMAGES)
    with pytest.raises(InputError, match=f"no array '{name}' or '{name}s'"):
        arrays.load(tmp_path / "data.npz", 0.5, {name: "image"})


def test_every_kind_is_read_from_tables_too_or_refused_by_name():
    for kind in (*CONDITIONS, "angle"):
        if kind not in columns.KINDS:
            with pytest.raises(InputError, match=f"unknown kind of condition {kind!r}"):
                columns.wanted({"x": kind})


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("labels", np.array([[0, 2]] * 6), "0 and 1, one for each class"),
        ("labels", ARRAYS["label"], r"labels? have shape|mine have shape \(6,\): \(N, d\)"),
        ("image", ARRAYS["image"].astype(np.int64), "int64, only uint8"),
        ("mask", ARRAYS["mask"] - 1, "holds -1"),
        ("mask", ARRAYS["mask"] + 300, "holds class 302"),
        ("mask", ARRAYS["mask"] * 0.5, "float64: integers or truth values are allowed"),
        ("tokens", ARRAYS["tokens"] - 1, "go from -2"),
        ("tokens", np.full((6, 2), -1), "go from -1 to -1"),
        ("embeddings", np.full((6, 2, 2), np.inf), "6 mine are not finite"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, kind, array, message):
    np.savez(tmp_path / "data.npz", images=IMAGES, mine=array)
    with pytest.raises(InputError, match=message):
        arrays.load(tmp_path / "data.npz", 0.5, {"mine": kind})


def test_labels_of_a_table_are_names_in_order():
    assert columns.of_table("t", "label", "x", ["10", "9", "10", " 2"]).classes == ("2", "9", "10")
    assert columns.label_names(["1", "01", "001"]).classes == ("001", "01", "1")  # in one order, whatever the hashes
    column = columns.of_table("t", "label", "x", ["b", "a", 3, True])
    assert column.classes == ("3", "a", "b", "true") and column.values.tolist() == [2, 1, 0, 3]


def test_several_labels_of_a_table():
    column = columns.of_table("t", "labels", "x", ["red;big", "", ["old", "red"], '["big"]', None])
    assert column.classes == ("big", "old", "red")
    assert column.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_numbers_of_a_table():
    vectors = columns.of_table("t", "vector", "x", ["0.5 1", "2,-3e1", [4, 5], "[6, 7]"]).values
    assert vectors.tolist() == [[0.5, 1], [2, -30], [4, 5], [6, 7]] and vectors.dtype == torch.float32
    assert columns.of_table("t", "vector", "x", ["1", 2.5]).values.tolist() == [[1.0], [2.5]]
    tokens = columns.of_table("t", "tokens", "x", ["3 4 5", [6], "7"]).values
    assert tokens.tolist() == [[3, 4, 5], [6, -1, -1], [7, -1, -1]]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("label", ["a", ""], "x of row 2 is ''"),
        ("label", ["a", None], "x of row 2 is None"),
        ("label", ["a", ["b"]], r"x of row 2 is \['b'\]"),
        ("labels", ["", None], "names no class in any row"),
        ("vector", ["1", "one"], "x of row 2 is 'one': numbers are needed"),
        ("vector", ["1", None], "x of row 2 is None"),
        ("vector", ["1 2", "3"], "1 to 2 numbers: as many in every row"),
        ("vector", ["1", "nan"], "1 x are not finite"),
        ("tokens", ["1", "1.5"], "x of row 2 is '1.5': integers"),
        ("tokens", [[1.5]], "integers"),
        ("tokens", ["-4"], "integers from 0, not -4"),
        ("embeddings", ["1"], "is read from arrays"),
    ],
)
def test_what_a_table_cannot_hold_is_refused_with_its_row(kind, values, message):
    with pytest.raises(InputError, match=message):
        columns.of_table("t", kind, "x", values)


def test_names_of_classes_belong_to_one_condition(tmp_path):
    np.savez(tmp_path / "data.npz", images=IMAGES, a=ARRAYS["label"], b=ARRAYS["label"], classes=["x", "y", "z"])
    parts = arrays.load(tmp_path / "data.npz", 0.5, {"a": "label", "b": "label"})
    assert parts.train.classes == {"a": ("0", "1", "2"), "b": ("0", "1", "2")}
    assert arrays.load(tmp_path / "data.npz", 0.5, {"a": "label"}).train.classes == {"a": ("x", "y", "z")}
    np.savez(tmp_path / "data.npz", images=IMAGES, a=ARRAYS["label"], classes=["x", "y", "x"])
    with pytest.raises(InputError, match="classes name 'x' twice"):
        arrays.load(tmp_path / "data.npz", 0.5, {"a": "label"})


def test_numbers_with_points_are_sorted_as_numbers():
    assert columns.label_names(["10.0", "2.0", "1.0"]).classes == ("1.0", "2.0", "10.0")


def test_huge_tokens_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", images=IMAGES, words=np.full((6, 2), 2**45))
    with pytest.raises(InputError, match="under 1000000 are allowed"):
        arrays.load(tmp_path / "data.npz", 0.5, {"words": "tokens"})
