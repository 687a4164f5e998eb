"""A table beside a folder's pictures: which pictures, and which conditions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import folder, metadata
from undiffuse.data.pictures import read_mask
from undiffuse.errors import InputError


@pytest.fixture
def pictures(tmp_path):
    """Six grey pictures of values 0, 10, ..., and smaller ones of the same value plus 5 in another folder."""
    for i in range(6):
        for name, value, side in (("large", 10 * i, 8), ("small", 10 * i + 5, 4)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (side, side), value).save(tmp_path / name / f"{i}.png")
        mask = Image.new("P", (8, 8), i % 3)
        mask.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def jsonl(root, rows):
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


def everything(parts):
    names = parts.train.conditions
    conditions = {name: torch.cat([parts.train.conditions[name], parts.held_out.conditions[name]]) for name in names}
    return torch.cat([parts.train.samples, parts.held_out.samples])[:, 0, 0, 0], conditions


def test_conditions_of_every_kind_from_json_lines(pictures):
    jsonl(
        pictures,
        [
            {
                "file_name": f"large/{i}.png", "digit": i % 2, "tags": ["even"] if i % 2 == 0 else [], "size": i / 2,
                "low": f"small/{i}.png", "map": f"masks/{i}.png", "words": list(range(i)) or [9],
            }
            for i in range(6)
        ],
    )  # fmt: skip
    kinds = {
        "digit": "label", "tags": "labels", "size": "vector", "low": {"name": "image", "factor": 2}, "map": "mask",
        "words": "tokens",
    }  # fmt: skip
    parts = folder.load(pictures, (8, 8), 1, conditions=kinds, held_out=0.3)
    values, conditions = everything(parts)
    i = values.long() // 10
    assert sorted(i.tolist()) == list(range(6))
    assert torch.equal(conditions["digit"], i % 2) and torch.equal(
        conditions["tags"][:, 0], (1 - i % 2).to(torch.uint8)
    )
    assert torch.equal(conditions["size"][:, 0], i / 2) and torch.equal(conditions["map"][:, 0, 0], i % 3)
    assert conditions["low"].shape == (6, 1, 4, 4) and torch.equal(conditions["low"][:, 0, 0, 0].long(), 10 * i + 5)
    assert torch.equal((conditions["words"] >= 0).sum(1), i.clamp(min=1)) and conditions["words"].shape == (6, 5)
    assert parts.train.classes == {"digit": ("0", "1"), "tags": ("even",)}


def test_a_csv_names_pictures_in_its_order_and_a_label_may_still_be_the_folder(pictures):
    (pictures / "metadata.csv").write_text(
        "file_name,thickness,note\nlarge/3.png,1 2,a\nsmall/3.png,3 4,b\nlarge/1.png,5 6,c\n"
    )
    parts = folder.load(pictures, (8, 8), 1, conditions={"label": "label", "thickness": "vector"}, held_out=0.3)
    values, conditions = everything(parts)
    assert sorted(values.tolist()) == [10, 30, 35]  # and no others
    for value, label, thickness in zip(values, conditions["label"], conditions["thickness"], strict=True):
        assert thickness.tolist() == {30: [1, 2], 35: [3, 4], 10: [5, 6]}[int(value)] and label == (value % 10 == 5)


def test_a_row_whose_condition_cannot_be_read_is_left_out_on_request(pictures):
    jsonl(pictures, [{"file_name": f"large/{i}.png", "low": f"small/{i}.png"} for i in range(6)])
    (pictures / "small" / "2.png").write_bytes(b"")
    kinds = {"low": {"name": "image", "factor": 2}}
    with pytest.raises(InputError, match=r"small/2\.png \(it is empty"):
        folder.load(pictures, (8, 8), 1, conditions=kinds)
    parts = folder.load(pictures, (8, 8), 1, conditions=kinds, skip_corrupt=True)
    values, conditions = everything(parts)
    assert sorted(values.tolist()) == [0, 10, 30, 40, 50]
    assert torch.equal(conditions["low"][:, 0, 0, 0], values + 5)
    assert [name.rsplit("/", 1)[-1] for name in parts.train.skipped] == ["2.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "", "has no rows"),
        ("metadata.csv", "picture,digit\na.png,1\n", "no column 'file_name', .* its columns are picture, digit"),
        ("metadata.csv", "file_name,digit\nlarge/1.png\n", "row 1 has not as many values"),
        ("metadata.csv", "file_name,digit\nlarge/1.png,1,2\n", "row 1 has not as many values"),
        ("metadata.csv", "file_name\nlarge/9.png\n", "row 1 names the picture 'large/9.png', which does not exist"),
        ("metadata.csv", "file_name\nlarge/1.png\nlarge/1.png\n", "row 2 names .* a second time"),
        ("metadata.csv", "file_name\n../large/1.png\n", "row 1 names the picture '../large/1.png', which is not below"),
        ("metadata.csv", "file_name\n/large/1.png\n", "which is not below the folder"),
        ("metadata.jsonl", "{}\n", "no column 'file_name'"),
        ("metadata.jsonl", '{"file_name": ', "line 1 is not JSON"),
        ("metadata.jsonl", "[1]", "line 1 holds no object"),
        ("metadata.jsonl", '{"file_name": null}', "row 1 names the picture None"),
    ],
)
def test_tables_that_are_none_are_refused(pictures, name, text, message):
    (pictures / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        folder.load(pictures, (8, 8), 1)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals(pictures):
    jsonl(pictures, [{"file_name": "large/1.png", "low": "small/9.png"}, {"file_name": "large/2.png", "low": "x"}])
    with pytest.raises(InputError, match=r"no column 'high' for the condition 'high': it has low"):
        folder.load(pictures, (8, 8), 1, conditions={"high": "vector"})
    with pytest.raises(InputError, match=r"low of row 1 names the picture .*small/9\.png, which does not exist"):
        folder.load(pictures, (8, 8), 1, conditions={"low": "image"})
    with pytest.raises(InputError, match="3 times smaller than samples of 8x8"):
        folder.load(pictures, (8, 8), 1, conditions={"low": {"name": "image", "factor": 3}})
    (pictures / "metadata.csv").write_text("file_name\n")
    with pytest.raises(InputError, match="holds both"):
        metadata.read(pictures)


def test_masks_are_read_alone_too(pictures):
    assert read_mask(pictures / "masks" / "2.png").unique().tolist() == [2]
    for numbers, kind in ((np.array([[0, 3], [100, 255]]), np.uint8), (np.array([[0, 3], [100, 200]]), np.uint16)):
        Image.fromarray(numbers.astype(kind)).save(pictures / "map.png")
        assert read_mask(pictures / "map.png").tolist() == numbers.tolist()  # classes are no brightness
    for picture, message in (
        (Image.fromarray(np.array([[0, 300]], np.uint16)), "class 300: 0 to 255"),
        (Image.new("RGB", (2, 2), (9, 0, 0)), "it has colours"),
    ):
        picture.save(pictures / "map.png")
        with pytest.raises(InputError, match=message):
            read_mask(pictures / "map.png")


def test_masks_of_16_bits_keep_their_classes_in_training(pictures):
    for i in range(6):
        Image.fromarray(np.full((8, 8), i, np.uint16)).save(pictures / "masks" / f"{i}.png")
    jsonl(pictures, [{"file_name": f"large/{i}.png", "map": f"masks/{i}.png"} for i in range(6)])
    values, conditions = everything(folder.load(pictures, (8, 8), 1, conditions={"map": "mask"}))
    assert torch.equal(conditions["map"][:, 0, 0].long(), values.long() // 10)


def test_embeddings_are_arrays_in_files(pictures):
    for i in range(6):
        np.save(pictures / f"{i}.npy", np.full((2, 3), i, np.float16))
    jsonl(pictures, [{"file_name": f"large/{i}.png", "text": f"{i}.npy"} for i in range(6)])
    values, conditions = everything(folder.load(pictures, (8, 8), 1, conditions={"text": "embeddings"}))
    assert conditions["text"].shape == (6, 2, 3) and torch.equal(conditions["text"][:, 0, 0], values / 10)
    for array, message in (
        (np.zeros(3), r"\(L, d\)"),
        (np.zeros((3, 3)), "pad them"),
        (np.full((2, 3), np.nan), "NaN"),
    ):
        np.save(pictures / "5.npy", array)
        with pytest.raises(InputError, match=f"text of row 6.*{message}"):
            folder.load(pictures, (8, 8), 1, conditions={"text": "embeddings"})
    (pictures / "5.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"text of row 6, '5\.npy', cannot be read"):
        folder.load(pictures, (8, 8), 1, conditions={"text": "embeddings"})


def test_texts_keep_their_line_breaks(pictures):
    (pictures / "metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,note\r\nlarge/1.png,"one\ntwo"\r\nlarge/2.png,x\r\n'
    )
    assert metadata.read(pictures).columns == {"note": ["one\ntwo", "x"]}
    (pictures / "metadata.csv").unlink()
    (pictures / "metadata.jsonl").write_text('{"file_name": "large/1.png", "note": "a\u2028b"}\r\n', newline="")
    assert metadata.read(pictures).columns == {"note": ["a\u2028b"]}


def test_a_mask_that_cannot_be_read_leaves_no_trace(pictures):
    for i in range(6):
        Image.new("L", (8, 8), 255 * (i % 2)).save(pictures / "masks" / f"{i}.png")
    (pictures / "masks" / "3.png").write_bytes(b"")
    jsonl(pictures, [{"file_name": f"large/{i}.png", "map": f"masks/{i}.png"} for i in range(6)])
    parts = folder.load(pictures, (8, 8), 1, conditions={"map": "mask"}, skip_corrupt=True)
    assert everything(parts)[1]["map"].unique().tolist() == [0, 1]


def test_a_mistyped_column_is_no_folders_name(pictures):
    jsonl(pictures, [{"file_name": f"large/{i}.png", "colour": "red"} for i in range(6)])
    with pytest.raises(InputError, match=r"no column 'color' .*did you mean 'colour'"):
        folder.load(pictures, (8, 8), 1, conditions={"color": "label"})


@pytest.mark.parametrize("argument", [{"factor": 0}, {"factor": "two"}, {"factor": None}, {"channels": 7}])
def test_arguments_of_a_picture_are_checked_before_it_is_read(pictures, argument):
    jsonl(pictures, [{"file_name": f"large/{i}.png", "low": f"small/{i}.png"} for i in range(6)])
    with pytest.raises(InputError, match=f"{next(iter(argument))} of the condition 'low' must be"):
        folder.load(pictures, (8, 8), 1, conditions={"low": {"name": "image", **argument}})
