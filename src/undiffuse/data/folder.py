"""Images from a folder of picture files."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from undiffuse.data import metadata
from undiffuse.data.columns import PICTURES, Column, Conditions, label_names, mask_classes, of_table, wanted
from undiffuse.data.dataset import Dataset, Samples, Split, chosen, missing, split
from undiffuse.data.memory import fits
from undiffuse.data.pictures import MODES, Pictures
from undiffuse.errors import InputError, unknown

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CROPS = ("center", "random")


def load(
    path: str | Path,
    size: tuple[int, int],
    channels: int = 3,
    crop: str = "center",
    conditions: Conditions = MappingProxyType({}),
    held_out: float = 0.1,
    skip_corrupt: bool = False,
    memory: str = "auto",
) -> Split:
    """The pictures below `path`, in sorted order, scaled to cover `size` and cropped at the centre.

    They are read into memory, or, where they do not fit, decoded where they are asked for (`Pictures`): the same bits
    either way. Pictures that are conditions are read into memory.

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
    skip_corrupt: leave out files that cannot be read, and name them in `Dataset.skipped`. Each is decoded to find out.
        Without it, of files that are not read into memory the headers are read here, and the rest when its turn comes.
    memory: "always", "never", or "auto", which goes by `undiffuse.data.memory.fits`.

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
    pictures = Pictures(files, stored, channels)
    samples: Samples = pictures
    if fits(memory, pictures.nbytes):
        samples, kept = pictures.decoded(skip_corrupt)
    else:
        kept = pictures.readable(skip_corrupt)
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
    if not kept.all():
        samples = chosen(samples, kept.nonzero()[:, 0])
    return split(Dataset(root.resolve().name, samples, values, classes, skipped), held_out)


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
    read, kept = Pictures(files, smaller, channels, nearest=mask).decoded(skip_corrupt)
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
