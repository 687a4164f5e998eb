"""Images from a folder of picture files."""

import difflib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from undiffuse.data import metadata
from undiffuse.data.columns import PICTURES, Column, Conditions, label_names, mask_classes, of_table, wanted
from undiffuse.data.dataset import Dataset, Split, missing, split
from undiffuse.errors import InputError, unknown

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CROPS = ("center", "random")


def load(
    path: str | Path,
    size: tuple[int, int],
    channels: int = 3,
    crop: str = "center",
    conditions: Conditions = MappingProxyType({}),
    held_out: float = 0.1,
    skip_corrupt: bool = False,
) -> Split:
    """Read every picture below `path`, in sorted order, scaled to cover `size` and cropped at the centre.

    Where the folder holds a table, metadata.csv or metadata.jsonl with a column `file_name`, the pictures are those of
    its rows, and a condition is the column of its name; of the kinds image, encoded-image and mask the column holds the
    path of a picture, which is read at `size` (1 / factor of it). A label without such a column is the name of the
    folder directly below `path`.

    Rotation by EXIF is applied; 16-bit grey is scaled to 8 bits; a palette becomes colours; of an animation the first
    frame is taken; transparency is laid over white unless `channels` is 4. Hidden files and folders are passed over.

    path: a folder; read are png, jpg, jpeg, webp, bmp, gif, tif and tiff.
    size: height and width in pixels.
    channels: 1 (grey), 3 (colour) or 4 (colour and straight alpha).
    crop: "center" gives samples of `size`; "random" gives an eighth more each way, from which a batch takes its crops.
    conditions: their kinds by name, as a recipe's section `condition`.
    held_out: the fraction to hold out, between 0 and 1.
    skip_corrupt: leave out files that cannot be read, and name them in `Dataset.skipped`.

    Raises: InputError for a missing or empty folder, a table that is none, an unreadable picture, conditions that
        stand nowhere, and options other than the above.
    """
    asked = wanted(conditions)
    _check(size, channels, crop)
    root = Path(path).expanduser()
    table = metadata.read(root) if root.is_dir() else None
    files = find(root) if table is None else table.files
    _check_columns(root, asked, list(table.columns) if table else [])
    stored = size if crop == "center" else (_with_margin(size[0]), _with_margin(size[1]))
    samples, kept = _read_all(files, stored, channels, skip_corrupt)
    columns: dict[str, Column] = {}
    for name, arguments in asked.items():
        kind = arguments["name"]
        if table is not None and name in table.columns:
            if kind == "embeddings":
                columns[name] = Column(_stacked_arrays(table, name, root))
            elif kind in PICTURES:
                columns[name], readable = _picture_column(root, table, name, arguments, stored, channels, skip_corrupt)
                kept &= readable
            else:
                columns[name] = of_table(str(table.path), kind, name, table.columns[name])
        else:
            columns[name] = label_names(_class_names(root, files))
    if not kept.any():
        raise InputError(f"{root}: none of the {len(files)} images can be read")
    skipped = tuple(str(file) for file, good in zip(files, kept.tolist(), strict=True) if not good)
    values = {name: column.values[kept] for name, column in columns.items()}
    classes = {name: column.classes for name, column in columns.items() if column.classes}
    return split(Dataset(root.resolve().name, samples[kept], values, classes, skipped), held_out)


def _check_columns(root: Path, asked: Mapping[str, Mapping[str, Any]], columns: list[str]) -> None:
    """Raises: InputError for conditions that stand in no column; a label may be the name of the folder instead."""
    for name, arguments in asked.items():
        near = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
        if name in columns or (arguments["name"] == "label" and not near):
            continue
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(columns) or 'no more than file_name'}"
        table = next((root / known for known in metadata.NAMES if (root / known).is_file()), None)
        if table is None:
            raise InputError(
                f"the condition {name!r} needs a column {name!r} in {root / metadata.NAMES[0]} or {metadata.NAMES[1]}, "
                "but there is no table"
            )
        raise InputError(f"{table} has no column {name!r} for the condition {name!r}: {hint}")


def _read_all(
    files: list[Path], size: tuple[int, int], channels: int, skip_corrupt: bool, nearest: bool = False
) -> tuple[UInt8[Tensor, "n channels height width"], Bool[Tensor, " n"]]:
    """Pictures at one size, and which of them could be read."""
    samples = torch.zeros(len(files), channels, *size, dtype=torch.uint8)  # what cannot be read stays 0
    # Threads, because Pillow decodes and resizes outside the interpreter's lock. Each writes rows of its own.
    with ThreadPoolExecutor(min(8, max(2, os.cpu_count() or 2))) as pool:
        read = list(pool.map(partial(_read_into, skip_corrupt=skip_corrupt, nearest=nearest), samples, files))
    return samples, torch.tensor(read)


def _stacked_arrays(table: metadata.Table, name: str, root: Path) -> Tensor:
    """The arrays (L, d) of the .npy files that a column names, as (N, L, d). Raises: InputError naming the row."""
    arrays: list[np.ndarray] = []
    for row, value in enumerate(table.columns[name]):
        where = f"{table.path}: {name} of row {row + 1}, {value!r},"
        try:
            array = np.load(root / str(value), allow_pickle=False)
        except Exception as error:  # numpy raises a dozen kinds on damaged bytes
            raise InputError(f"{where} cannot be read as an .npy file ({str(error).splitlines()[0]})") from error
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
            raise InputError(f"{where} is not an array of numbers (L, d)")
        if arrays and array.shape != arrays[0].shape:
            raise InputError(f"{where} is {array.shape}, and the first is {arrays[0].shape}: pad them to one shape")
        if not np.isfinite(array).all():
            raise InputError(f"{where} holds NaN or infinity")
        arrays.append(array.astype(np.float32))
    return torch.from_numpy(np.stack(arrays))


def _picture_column(
    root: Path,
    table: metadata.Table,
    name: str,
    arguments: Mapping[str, Any],
    size: tuple[int, int],
    channels: int,
    skip_corrupt: bool,
) -> tuple[Column, Bool[Tensor, " n"]]:
    """The pictures that a column names, at 1 / factor of the samples' size, and which of them could be read."""
    factor, mask = arguments.get("factor", 1), arguments["name"] == "mask"
    channels = 1 if mask else arguments.get("channels", channels)
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 1:
        raise InputError(f"the factor of the condition {name!r} must be a whole number from 1, not {factor!r}")
    if channels not in MODES or isinstance(channels, bool):
        raise InputError(f"channels of the condition {name!r} must be 1, 3 or 4, not {channels!r}")
    if size[0] % factor or size[1] % factor:
        raise InputError(f"pictures {factor} times smaller than samples of {size[0]}x{size[1]} have no whole size")
    files = [root / str(value) for value in table.columns[name]]
    for row, file in enumerate(files):
        if not file.is_file():
            raise InputError(f"{table.path}: {name} of row {row + 1} names the picture {file}, which does not exist")
    smaller = (size[0] // factor, size[1] // factor)
    read, kept = _read_all(files, smaller, channels, skip_corrupt, mask)
    return Column(mask_classes(str(table.path), read[:, 0]) if mask else read), kept


def _check(size: tuple[int, int], channels: int, crop: str) -> None:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size is {size}: height and width are needed, each 1 or more pixels")
    if channels not in MODES:
        raise InputError(f"channels is {channels}: 1 (grey), 3 (colour) and 4 (colour and alpha) are allowed")
    if crop not in CROPS:
        raise unknown("crop", crop, CROPS)


def _with_margin(pixels: int) -> int:
    return -(-pixels * 9 // 8)


def find(root: Path) -> list[Path]:
    """The pictures below a folder, in the order of their paths. Raises: InputError where there are none."""
    if not root.exists():
        raise missing(root)
    if not root.is_dir():
        raise InputError(f"{root} is a file: a folder of images is needed (data source 'arrays' reads .npz and .npy)")
    below = ((file.relative_to(root), file) for file in root.rglob("*") if file.suffix.lower() in ENDINGS)
    # Hidden ones are other programs' droppings, such as the "._name.jpg" of macOS. Sorted by the text of the path,
    # because the order of Path objects depends on the system.
    found = {name.as_posix(): file for name, file in below if not any(part.startswith(".") for part in name.parts)}
    files = [found[name] for name in sorted(found) if found[name].is_file()]
    if not files:
        raise InputError(f"{root} holds no images: files ending in {' '.join(ENDINGS)} are read, at any depth")
    return files


def read_mask(file: str | Path) -> UInt8[Tensor, "height width"]:
    """A map of classes at its own size, from a grey picture or a palette's numbers. Raises: InputError."""
    try:
        with Image.open(file) as opened:
            values = torch.from_numpy(np.array(_class_map(ImageOps.exif_transpose(opened))))
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise InputError(f"cannot read the image {file} ({error or type(error).__name__})") from error
    return values


def _class_names(root: Path, files: list[Path]) -> list[str]:
    parts = [file.relative_to(root).parts for file in files]
    outside = [file for file, part in zip(files, parts, strict=True) if len(part) == 1]
    if outside:
        raise InputError(
            f"{outside[0]} is in no class: a label needs every image in a folder named after its class, "
            f"{root / '<class>'} ({len(outside)} of {len(files)} are not), or a column in {metadata.NAMES[0]}; "
            "condition=none needs neither"
        )
    return [part[0] for part in parts]


def _read_into(sample: Tensor, file: Path, skip_corrupt: bool, nearest: bool) -> bool:
    """Write the picture in `file` into `sample` (C, H, W) and tell whether it could be read.

    nearest: for maps of classes: a palette's numbers stay what they are, and no value is made that was not there.
    """
    channels, height, width = sample.shape
    try:
        with Image.open(file) as opened:
            turned = ImageOps.exif_transpose(opened)
            picture = _class_map(turned) if nearest else _in_mode(turned, MODES[channels])
        rule = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
        picture = ImageOps.fit(picture, (width, height), rule)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        if skip_corrupt:
            return False
        reason = "it is empty" if file.stat().st_size == 0 else str(error) or type(error).__name__
        raise InputError(
            f"cannot read the image {file} ({reason}); data.skip_corrupt=true leaves such files out"
        ) from error
    sample.copy_(torch.from_numpy(np.array(picture).reshape(height, width, channels)).permute(2, 0, 1))
    return True


def read_picture(file: str | Path, channels: int) -> UInt8[Tensor, "channels height width"]:
    """One picture at its own size, read as `load` does.

    Raises: InputError for a file that is none, and for a coloured picture where `channels` is 1.
    """
    try:
        with Image.open(file) as opened:
            picture = _in_mode(ImageOps.exif_transpose(opened), MODES[3 if channels == 1 else channels])
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise InputError(f"cannot read the image {file} ({error or type(error).__name__})") from error
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if channels == 1 and not bool((pixels == pixels[:1]).all()):
        raise InputError(f"{file} has colours, but this model takes 1 channel: make it grey first")
    return pixels[:channels].contiguous()


def _class_map(picture: Image.Image) -> Image.Image:
    """A picture whose numbers are classes, one byte each: a palette's, or grey. Raises: ValueError for another."""
    if picture.mode in ("P", "L"):
        return picture.copy()
    if picture.mode.startswith("I"):  # 16 bits
        numbers = np.asarray(picture)
        if numbers.min() < 0 or numbers.max() > 255:
            raise ValueError(f"it holds class {numbers.max()}: 0 to 255 is allowed")
        return Image.fromarray(numbers.astype(np.uint8))
    colours = np.asarray(picture.convert("RGB"))
    if not (colours == colours[..., :1]).all():
        raise ValueError("it has colours: the classes of a mask are grey values, or the numbers of a palette")
    return Image.fromarray(np.ascontiguousarray(colours[..., 0]))


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a known range")
    if picture.mode.startswith("I"):
        # Pillow would clip at 255. Mode "I" is what its older versions make of a 16-bit PNG.
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    if mode == "RGBA":
        return picture.convert("RGBA")
    if "transparency" in picture.info or picture.mode[-1] in "Aa":
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB").convert(mode) if picture.mode != "L" else picture.convert(mode)
