"""Pictures: showing them side by side, and writing them with what is known about them."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.files import atomic_folder, atomic_path

SMALLEST_CELL = 32  # pixels; below it a picture is hard to see on a screen
ALLOWED = ".png (one grid), .npz (arrays), or no ending or a trailing slash (a folder of PNGs)"


def to_array(images: Shaped[Tensor, "n channels height width"]) -> Shaped[np.ndarray, "n height width *channels"]:
    """uint8 images, or float32 latents, with channels last, (N, H, W, C), or (N, H, W) where there is one channel.

    Raises: InputError for another type.
    """
    if images.dtype not in (torch.uint8, torch.float32):
        raise InputError(f"images are {images.dtype}: uint8 or float32 is allowed (a codec's decode gives it)")
    array = images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def grid(
    images: Shaped[np.ndarray, "n height width *channels"],
    columns: int | None = None,
    padding: int = 1,
    scale: int | None = None,
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Pictures side by side, row by row, with white between them and in the places left over.

    images: uint8.
    columns: pictures in a row; by default about as many as there are rows.
    padding: pixels between neighbours.
    scale: how many pixels a picture's pixel becomes each way; by default so many that both sides have 32 or more.

    Raises: InputError when there are no pictures, or for a number below 1 (padding: below 0).
    """
    images = _checked(images)
    if images.dtype != np.uint8:
        raise InputError(f"pictures are {images.dtype}: uint8 is shown; floats are latents, which an .npz holds")
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    scale = math.ceil(SMALLEST_CELL / min(height, width)) if scale is None else scale
    if columns < 1 or scale < 1 or padding < 0:
        raise InputError(f"columns={columns} scale={scale} padding={padding}: 1, 1 and 0 or more are allowed")
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    high, wide = height * scale + padding, width * scale + padding
    cells = np.full((rows * columns, high, wide, channels), 255, np.uint8)
    cells[:n, : high - padding, : wide - padding] = large
    whole = (
        cells.reshape(rows, columns, high, wide, channels).swapaxes(1, 2).reshape(rows * high, columns * wide, channels)
    )
    return whole[: rows * high - padding, : columns * wide - padding]


def check_output(path: str | Path, overwrite: bool = False, latents: bool = False) -> None:
    """Find out before any work whether `save` will take `path`. latents: floats, which need an .npz.

    Raises: InputError for an unknown ending, for what exists already unless `overwrite`, for a folder that holds other
    things than numbered PNGs in any case, and where nothing can be written.
    """
    ending, path = _ending(path), Path(path)
    if latents and ending != ".npz":
        raise InputError(f"{path} cannot hold latents, which are floats: .npz can")
    if path.exists():
        if path.is_dir() != (ending == ""):
            raise InputError(f"{path} is a {'folder' if path.is_dir() else 'file'} already: choose another name")
        ours = ending != "" or all(re.fullmatch(r"\d+\.png", entry.name) for entry in path.iterdir())
        if not ours:
            raise InputError(f"{path} holds other things than numbered PNGs and is not replaced: choose another name")
        if not overwrite and (ending != "" or any(path.iterdir())):
            raise InputError(f"{path} exists already: choose another name, or allow overwriting")
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise InputError(f"cannot write {path}: {ancestor} is {'read-only' if ancestor.is_dir() else 'a file'}")


def save(
    path: str | Path,
    images: Shaped[np.ndarray, "n height width *channels"],
    labels: Shaped[np.ndarray, " count"] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Write uint8 pictures, whole or not at all, in the form that the ending of `path` names.

    `.png`: one grid, with `metadata` as text chunks.
    `.npz`: `images`, `labels` where given, and `metadata` as JSON; the data source "arrays" reads it.
    No ending, or a trailing slash: a folder of PNGs 00000.png, 00001.png, ..., each with `metadata`, its number
    (`index`) and its label as text chunks. With `overwrite` a folder is replaced, but only one of numbered PNGs.

    labels: integers; columns, scale: of the grid.

    Raises: InputError as `check_output`, for unfit arrays, and when the disk is full.
    """
    images = _checked(images)
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(images),)):
        raise InputError(
            f"labels are {labels.dtype} {labels.shape}: an integer for each of {len(images)} pictures is needed"
        )
    check_output(path, overwrite, latents=images.dtype != np.uint8)
    ending, path, metadata = _ending(path), Path(path), dict(metadata or {})
    if ending == ".npz":
        arrays = {"images": images[..., 0] if images.shape[-1] == 1 else images}
        arrays |= {} if labels is None else {"labels": np.asarray(labels, np.int64)}
        arrays["metadata"] = np.array(json.dumps(metadata))
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        return
    if images.shape[-1] > 4:
        raise InputError(f"a PNG holds 1 to 4 channels, these pictures have {images.shape[-1]}: .npz holds any")
    if ending == ".png":
        with atomic_path(path) as temporary:
            _write_png(temporary, grid(images, columns, scale=scale), metadata)
        return
    with atomic_folder(path) as folder:
        for i, picture in enumerate(images):
            label = {} if labels is None else {"label": str(labels[i])}
            _write_png(folder / f"{i:05d}.png", picture, metadata | {"index": str(i)} | label)


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `save` wrote beside the pictures: the text chunks of a picture file, or the `metadata` of an .npz.

    Raises: InputError for a file that is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: a picture or .npz is needed")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = json.loads(str(arrays["metadata"])) if "metadata" in arrays.files else {}
        else:
            with Image.open(path) as picture:
                found = getattr(picture, "text", picture.info)  # of a PNG: chunks behind the pixels too
    except Exception as error:  # Pillow, numpy and zipfile raise a dozen kinds on damaged bytes
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0] if str(error) else error!r}") from error
    return {str(key): value for key, value in found.items() if isinstance(value, str)}


def _checked(images: np.ndarray) -> np.ndarray:
    """The same pictures as (N, H, W, C)."""
    if images.dtype not in (np.uint8, np.float32) or images.ndim not in (3, 4) or images.size == 0:
        raise InputError(
            f"pictures are {images.dtype} {images.shape}: uint8 (N, H, W) or (N, H, W, C), not empty, is needed "
            "(or latents, float32)"
        )
    return images[..., None] if images.ndim == 3 else images


def _ending(path: str | Path) -> str:
    """ ".png", ".npz", or "" for a folder."""
    ending = "" if str(path).endswith(("/", os.sep)) else Path(path).suffix.lower()
    if ending not in (".png", ".npz", ""):
        raise InputError(f"unknown ending {ending!r} of {path}: allowed are {ALLOWED}")
    return ending


def _write_png(path: Path, picture: np.ndarray, metadata: Mapping[str, str]) -> None:
    text = PngInfo()
    for key, value in metadata.items():
        text.add_text(key, value)
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path, format="PNG", pnginfo=text)
