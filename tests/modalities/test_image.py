import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import arrays
from undiffuse.errors import InputError
from undiffuse.modalities import image

GREY = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 4, 10, 3), dtype=np.uint8)
FORMS = ["out.png", "out.npz", "out", "out/"]


def test_channels_go_last():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    array = image.to_array(images)
    assert array.shape == (2, 4, 5, 3) and array[1, 2, 3, 0] == images[1, 0, 2, 3]
    assert image.to_array(images[:, :1]).shape == (2, 4, 5)
    assert image.to_array(images.float()).dtype == np.float32
    with pytest.raises(InputError, match="int64: uint8 or float32"):
        image.to_array(images.long())


def test_a_grid_puts_every_picture_in_its_place():
    whole = image.grid(COLOUR, columns=4, padding=2, scale=3)
    assert whole.shape == (2 * 12 + 2, 4 * 30 + 3 * 2, 3)
    for i, picture in enumerate(COLOUR):
        top, left = i // 4 * 14, i % 4 * 32
        cell = whole[top : top + 12, left : left + 30]
        assert (cell[::3, ::3] == picture).all() and (cell == cell[::3, ::3].repeat(3, 0).repeat(3, 1)).all()
    assert (whole[12:14] == 255).all() and (whole[:, 30:32] == 255).all() and (whole[14:, 64:] == 255).all()


def test_small_pictures_are_made_visible():
    assert image.grid(GREY).shape == (2 * 32 + 1, 3 * 32 + 2, 1)
    assert image.grid(GREY[:1]).shape == (32, 32, 1)
    assert image.grid(GREY[:1, :5, :3], columns=9).shape == (55, 33, 1)
    assert image.grid(np.zeros((1, 40, 50), np.uint8)).shape == (40, 50, 1)
    assert (image.grid(GREY, padding=0, columns=5, scale=1)[..., 0] == GREY.swapaxes(0, 1).reshape(8, 40)).all()


@pytest.mark.parametrize("options", [{"columns": 0}, {"scale": 0}, {"padding": -1}])
def test_unfit_grids_are_refused(options):
    with pytest.raises(InputError, match="1, 1 and 0 or more"):
        image.grid(GREY, **options)


@pytest.mark.parametrize("images", [GREY / 255.0, GREY[:0], GREY[..., None, None]])
def test_unfit_pictures_are_refused(images, tmp_path):
    with pytest.raises(InputError, match=r"uint8 \(N, H, W\) or \(N, H, W, C\), not empty"):
        image.grid(images)
    with pytest.raises(InputError, match="not empty"):
        image.save(tmp_path / "a.png", images)


def test_a_png_holds_the_grid_and_the_metadata(tmp_path):
    metadata = {"seed": "7", "recipe": "größe: 8\nλ: 1"}
    image.save(tmp_path / "new" / "a.PNG", GREY, metadata=metadata)
    with Image.open(tmp_path / "new" / "a.PNG") as picture:
        assert picture.format == "PNG" and picture.text == metadata
        assert (np.asarray(picture) == image.grid(GREY)[..., 0]).all()


@pytest.mark.parametrize("images", [GREY, GREY[..., None], COLOUR])
def test_an_npz_is_read_back_by_the_data_source(tmp_path, images):
    labels = np.arange(len(images)) % 2
    image.save(tmp_path / "a.npz", images, labels, {"seed": "7"})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        assert content["images"].shape == (GREY.shape if len(images) == 5 else COLOUR.shape)
        assert content["labels"].dtype == np.int64 and json.loads(str(content["metadata"])) == {"seed": "7"}
    parts = arrays.load(tmp_path / "a.npz", held_out=0.4)
    assert len(parts.train) + len(parts.held_out) == len(images)
    assert image.read_metadata(tmp_path / "a.npz") == {"seed": "7"}
    image.save(tmp_path / "b.npz", images)
    assert "labels" not in np.load(tmp_path / "b.npz")


@pytest.mark.parametrize("name", ["many", "many.1/"])
def test_a_folder_holds_numbered_pngs(tmp_path, name):
    image.save(f"{tmp_path}/{name}", COLOUR, np.arange(6), {"seed": "7"})
    files = sorted((tmp_path / name).iterdir())
    assert [file.name for file in files] == [f"0000{i}.png" for i in range(6)]
    for i, file in enumerate(files):
        with Image.open(file) as picture:
            assert (np.asarray(picture) == COLOUR[i]).all() and picture.text == {
                "seed": "7",
                "index": str(i),
                "label": str(i),
            }
        assert image.read_metadata(file) == {"seed": "7", "index": str(i), "label": str(i)}
    assert [entry.name for entry in tmp_path.iterdir()] == [name.rstrip("/")]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_one_to_four_channels(tmp_path, channels):
    images = np.random.default_rng(2).integers(0, 256, (1, 32, 32, channels), dtype=np.uint8)
    image.save(tmp_path / "a.png", images)
    with Image.open(tmp_path / "a.png") as picture:
        assert (np.asarray(picture).reshape(32, 32, channels) == images[0]).all()


def test_more_channels_fit_an_npz_only(tmp_path):
    images = np.zeros((2, 4, 4, 5), np.uint8)
    image.save(tmp_path / "a.npz", images)
    for name in ("a.png", "a"):
        with pytest.raises(InputError, match=r"these pictures have 5: \.npz holds any"):
            image.save(tmp_path / name, images)


@pytest.mark.parametrize("name", FORMS)
def test_what_exists_is_replaced_only_on_request(tmp_path, name):
    path = f"{tmp_path}/{name}"
    image.check_output(path)
    image.save(path, GREY)
    for refused in (lambda: image.check_output(path), lambda: image.save(path, COLOUR)):
        with pytest.raises(InputError, match="exists already"):
            refused()
    image.check_output(path, overwrite=True)
    image.save(path, COLOUR, overwrite=True)
    if name == "out.npz":
        assert len(np.load(path)["images"]) == 6
    elif name != "out.png":
        assert len(list((tmp_path / "out").iterdir())) == 6
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    image.check_output(tmp_path / "photos")
    image.save(tmp_path / "photos", GREY)
    (tmp_path / "photos" / "mine.png").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="other things than numbered PNGs"):
            image.save(tmp_path / "photos", GREY, overwrite=overwrite)
    assert len(list((tmp_path / "photos").iterdir())) == 6


def test_unfit_outputs_are_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"unknown ending '\.jpg' .* allowed are \.png .* \.npz .* folder"):
        image.check_output(tmp_path / "a.jpg")
    (tmp_path / "a").touch()
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match="a is a file already"):
        image.check_output(tmp_path / "a", overwrite=True)
    with pytest.raises(InputError, match=r"b\.png is a folder already"):
        image.check_output(tmp_path / "b.png", overwrite=True)
    with pytest.raises(InputError, match="a is a file"):
        image.check_output(tmp_path / "a" / "deep" / "b.png")
    for labels in (np.arange(3), np.arange(5) / 2):
        with pytest.raises(InputError, match=r"labels are .*: an integer for each of 5 pictures"):
            image.save(tmp_path / "c.png", GREY, labels)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was(tmp_path, monkeypatch, name, before):
    path = f"{tmp_path}/{name}"
    if before:
        image.save(path, GREY)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"cannot write .*out.*: No space left on device"):
        image.save(path, COLOUR, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == kept
    assert len(list(tmp_path.iterdir())) == int(before)


def test_a_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    image.save(tmp_path / "out", GREY)
    rename = type(tmp_path).rename

    def failing(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(InputError, match="Input/output error"):
        image.save(tmp_path / "out", COLOUR, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"] and len(list((tmp_path / "out").iterdir())) == 5


def test_latents_are_kept_in_npz_and_shown_nowhere(tmp_path):
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    image.save(tmp_path / "latents.npz", latents)
    assert np.array_equal(np.load(tmp_path / "latents.npz")["images"], latents)
    for bad in (lambda: image.save(tmp_path / "x.png", latents), lambda: image.grid(latents)):
        with pytest.raises(InputError, match="latents"):
            bad()
    assert not (tmp_path / "x.png").exists()
