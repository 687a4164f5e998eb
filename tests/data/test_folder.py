import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import Dataset, Split, folder
from undiffuse.errors import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(path, colour, size=(9, 9), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def everything(parts: Split) -> Dataset:
    """Both parts as one, in no particular order."""
    conditions = {
        name: torch.cat([parts.train.conditions[name], parts.held_out.conditions[name]])
        for name in parts.train.conditions
    }
    return Dataset("all", torch.cat([parts.train.samples, parts.held_out.samples]), conditions, parts.train.classes)


def read(path, size=(4, 6), **options) -> torch.Tensor:
    """The one picture at `path`, (C, H, W); a copy is put beside it because one of two is held out."""
    path.with_name("copy" + path.suffix).write_bytes(path.read_bytes())
    samples = everything(folder.load(path.parent, size, **options)).samples
    assert torch.equal(samples[0], samples[1])
    return samples[0]


def test_200_pictures_of_different_sizes_with_class_folders(tmp_path):
    draw = np.random.default_rng(0)
    endings = ("png", "JPG", "webp", "bmp", "gif", "tiff", "jpeg")
    for i in range(200):
        size = tuple(int(side) for side in draw.integers(3, 60, 2))
        name, colour = [("reds", RED), ("greens", GREEN)][i % 2]
        flat(tmp_path / name / f"deep{i % 3}" / f"{i}.{endings[i % 7]}", colour, size)
    parts = folder.load(tmp_path, (12, 20), conditions={"label": "label"}, held_out=0.1)
    assert (len(parts.train), len(parts.held_out), parts.train.shape) == (180, 20, (3, 12, 20))
    assert (
        parts.train.classes == {"label": ("greens", "reds")}
        and parts.held_out.conditions["label"].tolist().count(0) == 10
    )
    whole = everything(parts)
    strongest = whole.samples.double().mean((2, 3)).argmax(1)
    assert torch.equal(strongest, 1 - whole.conditions["label"])
    again = folder.load(tmp_path, (12, 20), conditions={"label": "label"}, held_out=0.1)
    assert torch.equal(again.train.samples, parts.train.samples)


def test_samples_come_in_sorted_order(tmp_path):
    for name, value in [("b/a", 2), ("a/z", 1), ("a/b", 0), ("c", 3)]:
        flat(tmp_path / f"{name}.png", value, mode="L")
    parts = folder.load(tmp_path, (2, 2), channels=1, held_out=0.25)
    train = parts.train.samples[:, 0, 0, 0].tolist()
    assert train == sorted(train) and len(train) == 3


def test_the_picture_covers_the_target_and_is_cut_at_the_centre(tmp_path):
    stripes = np.repeat(np.array([RED, GREEN, BLUE], np.uint8), 30, axis=0)[None].repeat(30, 0)  # 30 high, 90 wide
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    square = read(tmp_path / "stripes.png", size=(10, 10))
    assert square[1].min() > 230 and (square[:, 5, 5] == torch.tensor(GREEN)).all()
    wide = read(tmp_path / "stripes.png", size=(10, 30))
    assert [wide[:, 5, column].argmax().item() for column in (4, 15, 25)] == [0, 1, 2]


def test_shrinking_averages(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    assert (read(tmp_path / "board.png", size=(8, 8), channels=1).float() - 127.5).abs().max() < 12


@pytest.mark.parametrize(("size", "stored"), [((8, 16), (9, 18)), ((10, 7), (12, 8)), ((1, 1), (2, 2))])
def test_a_random_crop_leaves_a_margin(tmp_path, size, stored):
    flat(tmp_path / "a.png", RED, (40, 30))
    assert read(tmp_path / "a.png", size=size, crop="random").shape == (3, *stored)


def test_rotation_by_exif_is_applied(tmp_path):
    picture = Image.new("RGB", (20, 10), RED)
    picture.paste(BLUE, (10, 0, 20, 10))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    sample = read(tmp_path / "turned.png", size=(20, 10))
    assert (sample[:, 2, 5] == torch.tensor(RED)).all() and (sample[:, 17, 5] == torch.tensor(BLUE)).all()


def test_transparency_is_kept_in_four_channels_and_laid_over_white_in_fewer(tmp_path):
    flat(tmp_path / "half.png", (*RED, 128), mode="RGBA")
    assert read(tmp_path / "half.png", channels=4)[:, 0, 0].tolist() == [255, 0, 0, 128]
    assert read(tmp_path / "half.png")[:, 0, 0].tolist() == [255, 127, 127]
    assert read(tmp_path / "half.png", channels=1).shape == (1, 4, 6)
    flat(tmp_path / "opaque.png", BLUE)
    (tmp_path / "half.png").unlink()
    assert read(tmp_path / "opaque.png", channels=4)[:, 0, 0].tolist() == [0, 0, 255, 255]


def test_colours_hidden_by_transparency_do_not_bleed(tmp_path):
    picture = Image.new("RGBA", (32, 32), (*GREEN, 0))
    picture.paste((*RED, 255), (0, 0, 16, 32))
    picture.save(tmp_path / "edge.png")
    assert read(tmp_path / "edge.png", size=(5, 5), channels=4)[1].max() <= 1


def test_a_palette_with_a_transparent_entry(tmp_path):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([*RED, *BLUE])
    picture.save(tmp_path / "a.gif", transparency=1)
    assert (read(tmp_path / "a.gif") == 255).all()
    picture.save(tmp_path / "a.gif")
    assert read(tmp_path / "a.gif")[:, 0, 0].tolist() == list(BLUE)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, ending):
    Image.fromarray(np.full((8, 8), 257 * 200, np.uint16)).save(tmp_path / f"deep.{ending}")
    assert (read(tmp_path / f"deep.{ending}", channels=3) == 200).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("1", 1, 255), ("CMYK", (0, 0, 0, 255), 0), ("LA", (7, 255), 7)]
)
def test_other_modes(tmp_path, mode, colour, expected):
    flat(tmp_path / "a.tiff", colour, mode=mode)
    assert (read(tmp_path / "a.tiff") == expected).all()


@pytest.fixture
def damaged(tmp_path):
    for i in range(4):
        flat(tmp_path / f"good{i}.png", RED)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.webp").write_text("words")
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cut.png", "."), ("empty.jpg", "it is empty"), ("text.webp", "identify"), ("float.tiff", "floating-point")],
)
def test_a_damaged_file_is_named(damaged, name, reason):
    for other in {"cut.png", "empty.jpg", "text.webp", "float.tiff"} - {name}:
        (damaged / other).unlink()
    with pytest.raises(InputError, match=rf"{name} \(.*{reason}.*data\.skip_corrupt=true"):
        folder.load(damaged, (4, 4))


def test_damaged_files_are_left_out_on_request_and_recorded(damaged):
    parts = folder.load(damaged, (4, 4), skip_corrupt=True)
    names = tuple(str(damaged / name) for name in ("cut.png", "empty.jpg", "float.tiff", "text.webp"))
    assert parts.train.skipped == parts.held_out.skipped == names
    assert (everything(parts).samples == torch.tensor(RED).view(1, 3, 1, 1)).all() and len(everything(parts)) == 4
    for i in range(4):
        (damaged / f"good{i}.png").unlink()
    with pytest.raises(InputError, match="none of the 4 images can be read"):
        folder.load(damaged, (4, 4), skip_corrupt=True)


def test_labels_stay_with_their_pictures_when_one_is_left_out(tmp_path):
    for i in range(3):
        flat(tmp_path / "a" / f"{i}.png", 10, mode="L")
        flat(tmp_path / "b" / f"{i}.png", 20, mode="L")
    (tmp_path / "a" / "1.png").write_bytes(b"")
    whole = everything(folder.load(tmp_path, (2, 2), 1, conditions={"label": "label"}, skip_corrupt=True))
    assert torch.equal(whole.samples[:, 0, 0, 0], (whole.conditions["label"] * 10 + 10).to(torch.uint8))


def test_unfit_folders_are_refused(tmp_path):
    flat(tmp_path / "photos" / "a.png", RED)
    with pytest.raises(InputError, match=r"fotos does not exist: did you mean .*photos"):
        folder.load(tmp_path / "fotos", (4, 4))
    with pytest.raises(InputError, match=r"a\.png is a file: a folder"):
        folder.load(tmp_path / "photos" / "a.png", (4, 4))
    with pytest.raises(InputError, match=r"a\.png is in no class.*\(1 of 1"):
        folder.load(tmp_path / "photos", (4, 4), conditions={"label": "label"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").touch()
    flat(tmp_path / "other" / "._a.png", RED)
    flat(tmp_path / "other" / ".hidden" / "a.png", RED)
    with pytest.raises(InputError, match=r"no images: files ending in \.png"):
        folder.load(tmp_path / "other", (4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, "each 1 or more pixels"),
        ({"channels": 2}, "channels is 2: 1 .* 3 .* 4"),
        ({"crop": "centre"}, "did you mean 'center'"),
        ({"conditions": {"size": "vector"}}, r"needs a column 'size' in .*metadata\.csv .*, but there is no table"),
        ({"conditions": {"size": "vektor"}}, "did you mean 'vector'"),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, message):
    flat(tmp_path / "a.png", RED)
    with pytest.raises(InputError, match=message):
        folder.load(tmp_path, **({"size": (4, 4)} | options))
