import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.data import SOURCES
from undiffuse.errors import InputError

load = SOURCES["arrays"]
LABEL = {"label": "label"}
random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (20, 5, 7, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


@pytest.fixture
def write(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return write


def test_colour_images_with_labels(write):
    parts = load(write(images=IMAGES, labels=LABELS.astype(np.uint8)), held_out=0.25, conditions=LABEL)
    assert (len(parts.train), len(parts.held_out), parts.train.shape) == (15, 5, (3, 5, 7))
    assert parts.train.name == "data" and parts.train.classes == {"label": ("0", "1", "2", "3")}
    assert parts.train.conditions["label"].dtype == torch.int64
    both = torch.cat([parts.train.samples, parts.held_out.samples]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([parts.train.conditions["label"], parts.held_out.conditions["label"]])
    place = [next(i for i in range(20) if (IMAGES[i] == picture).all()) for picture in both]
    assert sorted(place) == list(range(20)) and (LABELS[place] == labels.numpy()).all()


def test_the_split_of_the_file_counts_and_not_the_fraction(write):
    marks = np.zeros(20, np.uint8)
    marks[[3, 17]] = 1
    parts = load(write(images=IMAGES, labels=LABELS, split=marks), held_out=0.5, conditions=LABEL)
    assert (parts.held_out.samples.permute(0, 2, 3, 1).numpy() == IMAGES[[3, 17]]).all()
    assert parts.held_out.conditions["label"].tolist() == [3, 1] and len(parts.train) == 18


@pytest.mark.parametrize("names", [["a", "b", "c", "é"], np.char.encode(["a", "b", "c", "é"], "utf-8")])
def test_class_names(write, names):
    assert load(write(images=IMAGES, labels=LABELS, classes=names), conditions=LABEL).train.classes["label"] == (
        "a",
        "b",
        "c",
        "é",
    )


def test_vectors_become_float32(write):
    parts = load(write(images=IMAGES, vectors=random.normal(size=(20, 6))), conditions={"vector": "vector"})
    vectors = parts.train.conditions["vector"]
    assert vectors.dtype == torch.float32 and vectors.shape == (18, 6) and parts.train.classes == {}


def test_grey_images_alone_from_npy(tmp_path):
    np.save(tmp_path / "grey.npy", IMAGES[..., 0])
    parts = load(tmp_path / "grey.npy")
    assert parts.train.shape == (1, 5, 7) and parts.train.conditions == {}
    with pytest.raises(InputError, match=r"no array 'label' or 'labels' .* only images"):
        load(tmp_path / "grey.npy", conditions=LABEL)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_to_four_channels(write, channels):
    images = np.zeros((4, 2, 3, channels), np.uint8)
    assert load(write(images=images)).train.shape == (channels, 2, 3)


def test_only_what_the_condition_needs_is_read(write):
    path = write(images=IMAGES, labels=np.array([None] * 20), vectors=np.full((20, 2), np.nan))
    assert len(load(path).train) == 18


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES, "labels": LABELS}, "no array 'images': it holds pictures, labels"),
        ({}, "it holds nothing"),
        ({"images": IMAGES / 255}, r"float64, only uint8 .* \* 255\)\.round"),
        ({"images": IMAGES.astype(np.uint16)}, "uint16, .* // 257"),
        ({"images": IMAGES.astype(np.int64)}, "int64, .*astype"),
        ({"images": IMAGES > 9}, r"bool, .* \* 255"),
        ({"images": np.array(["a"])}, "<U1, only uint8"),
        ({"images": IMAGES[0, 0]}, r"shape \(7, 3\): \(N, H, W\) or \(N, H, W, C\)"),
        ({"images": IMAGES.transpose(0, 2, 3, 1)}, "channels, 1 to 4"),
        ({"images": IMAGES[:0]}, "images are empty"),
        ({"images": IMAGES[..., :0]}, "images are empty"),
        ({"images": IMAGES}, "no array 'label' or 'labels'"),
        ({"images": IMAGES, "labels": LABELS[:7]}, "7 labels for 20 images"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels go from -1 to 2: 0 to"),
        ({"images": IMAGES, "labels": np.where(LABELS > 0, 2**64 - 1, 0).astype(np.uint64)}, "to 18446744073709551615"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, "labels are float64: integers or names are allowed"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, r"labels have shape \(20, 1\): \(N,\)"),
        ({"images": IMAGES, "labels": np.array([None] * 20)}, "pickled objects"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a"]}, "name for each of the 4 labels"),
        ({"images": IMAGES, "labels": LABELS, "split": np.zeros(20, int)}, "split holds 0: 0 .* and 1"),
        ({"images": IMAGES, "labels": LABELS, "split": LABELS}, "split holds 0, 1, 2, 3: "),
        ({"images": IMAGES, "labels": LABELS, "split": LABELS[:3]}, "3 split for 20 images"),
    ],
)
def test_unfit_arrays_are_refused(write, arrays, message):
    path = write(**arrays)
    with pytest.raises(InputError, match=message) as caught:
        load(path, conditions=LABEL)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (
            np.where(np.arange(40).reshape(20, 2) == 9, np.nan, 0),
            "1 vectors are not finite in float32, the first in row 4",
        ),
        (np.full((20, 2), 1e300), "20 vectors are not finite"),
        (np.zeros((20, 2, 2)), r"shape \(20, 2, 2\): \(N,\) or \(N, d\)"),
        (np.zeros((20, 0)), r"shape \(20, 0\)"),
        (np.zeros((3, 2)), "3 vectors for 20 images"),
        (np.full((20, 2), "a"), "floats or integers"),
    ],
)
def test_unfit_vectors_are_refused(write, vectors, message):
    with pytest.raises(InputError, match=message):
        load(write(images=IMAGES, vectors=vectors), conditions={"vector": "vector"})


def test_unknown_condition_is_refused(write):
    with pytest.raises(InputError, match="did you mean 'label'"):
        load(write(images=IMAGES), conditions={"label": "lable"})


def test_a_missing_file_names_its_neighbour(write, tmp_path):
    write(images=IMAGES)
    with pytest.raises(InputError, match=r"date\.npz does not exist: did you mean .*data\.npz"):
        load(tmp_path / "date.npz")
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere" / "at" / "all.npz")
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_a_file_cut_short_is_refused(tmp_path, keep, ending):
    whole = tmp_path / f"whole.{ending}"
    np.savez(whole, images=IMAGES) if ending == "npz" else np.save(whole, IMAGES.repeat(5, 0))
    part = tmp_path / f"part.{ending}"
    part.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cannot read .*part"):
        load(part)


def test_flipped_bytes_are_noticed(write):
    path = write(images=IMAGES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load(path)


def test_pickles_and_other_files_are_never_opened(tmp_path):
    (tmp_path / "notes.npz").write_text("not an archive")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    for name in ("notes.npz", "objects.npy"):
        with pytest.raises(InputError, match="only plain arrays are read"):
            load(tmp_path / name)


def test_the_archive_of_cifar10_becomes_a_file_as_documented(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    block = next(found for found in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "def cifar10(" in found)
    namespace = {"np": np}
    exec(block, namespace)
    rows = np.random.default_rng(0).integers(0, 256, (12, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(12) % 10
    parts = {f"data_batch_{i}.bin": rows[2 * i - 2 : 2 * i].tobytes() for i in range(1, 6)}
    names = [f"class{i}" for i in range(10)]
    parts |= {"test_batch.bin": rows[10:].tobytes(), "batches.meta.txt": "\n".join([*names, "", ""]).encode()}
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    namespace["cifar10"](tmp_path / "archive.tar.gz", tmp_path / "cifar10.npz")
    made = load(tmp_path / "cifar10.npz", conditions=LABEL)
    assert len(made.train) == 10 and len(made.held_out) == 2 and made.train.classes == {"label": tuple(names)}
    pictures = torch.cat([made.train.samples, made.held_out.samples])
    assert torch.equal(pictures.flatten(1), torch.from_numpy(rows[:, 1:]))  # planes of red, green and blue
    assert made.held_out.label.tolist() == [0, 1]
