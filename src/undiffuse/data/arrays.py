"""Images from a numpy file."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.columns import Column, Conditions, of_array, rows, wanted
from undiffuse.data.dataset import Dataset, Split, missing, split
from undiffuse.errors import InputError

OWN = ("images", "split", "classes")  # arrays that are no condition's, whatever it is called
TO_UINT8 = {
    "f": "if they lie in 0..1, convert with (images * 255).round().clip(0, 255).astype('uint8')",
    "u": "if they are 16-bit, convert with (images // 257).astype('uint8')",
    "i": "if they lie in 0..255, convert with images.astype('uint8')",
    "b": "convert with images.astype('uint8') * 255",
}


def load(path: str | Path, held_out: float = 0.1, conditions: Conditions = MappingProxyType({})) -> Split:
    """Read an `.npz` with named arrays, or an `.npy` with images only.

    images: uint8 (N, H, W) or (N, H, W, C) with 1 to 4 channels.
    split: (N,), 0 for training and 1 for held out (optional; then it counts and not the fraction).
    An array for each condition, called as it is or with an s more, a row per image:
        label: integers from 0 or names (N,); labels: 0 and 1 (N, classes); vector: finite numbers (N, d) or (N,);
        image, encoded-image: uint8 as images, of any size; mask: integers (N, H, W);
        tokens: integers from 0 (N, L), -1 for padding; embeddings: finite numbers (N, L, d).
    NAME_classes, or classes: the names of the labels of condition NAME (optional; the number itself where absent).

    held_out: the fraction to hold out, between 0 and 1.
    conditions: their kinds by name, as a recipe's section `condition`.

    Raises: InputError for a missing or damaged file, pickled objects, and arrays other than the above.
    """
    asked = wanted(conditions)
    path = Path(path).expanduser()
    names = [key for name in asked for key in (name, f"{name}s", f"{name}_classes")]
    arrays, keys = _read(path, ("images", "split", "classes", *names))
    samples = _samples(path, arrays["images"])
    columns: dict[str, Column] = {}
    for name, arguments in asked.items():
        key = next((key for key in (name, f"{name}s") if key in arrays and key not in OWN), None)
        if key is None:
            raise InputError(
                f"{path} has no array {name!r} or {name + 's'!r} for the condition {name!r}, only {', '.join(keys)}: "
                "add it, or use another condition (condition=none)"
            )
        of_all = arrays.get("classes") if sum(a["name"] in ("label", "labels") for a in asked.values()) == 1 else None
        class_names = arrays.get(f"{name}_classes", of_all)
        columns[name] = of_array(path, arguments["name"], key, arrays[key], len(samples), class_names)
    dataset = Dataset(
        path.stem,
        samples,
        {name: column.values for name, column in columns.items()},
        {name: column.classes for name, column in columns.items() if column.classes},
    )
    if "split" not in arrays:
        return split(dataset, held_out)
    outside = _outside(path, arrays["split"], len(dataset))
    return Split(dataset.subset((~outside).nonzero()[:, 0]), dataset.subset(outside.nonzero()[:, 0]))


def _read(path: Path, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of these names, and the names of all."""
    if not path.exists():
        raise missing(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: an .npz or .npy file is needed (data source 'folder' reads image files)")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            keys, arrays = ["images"], {"images": loaded}
        else:
            with loaded:
                keys = list(loaded.files)
                arrays = {key: np.asarray(loaded[key]) for key in names if key in keys}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged bytes
        if "pickle" in str(error):
            reason = "pickled objects, or no .npz or .npy file at all: only plain arrays are read"
        else:
            reason = f"damaged or cut short ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise InputError(f"cannot read {path}: {reason}") from error
    if "images" not in arrays:
        raise InputError(f"{path} has no array 'images': it holds {', '.join(keys) or 'nothing'}")
    return arrays, keys


def _samples(path: Path, images: np.ndarray) -> Tensor:
    if images.dtype != np.uint8:
        hint = TO_UINT8.get(images.dtype.kind, "save numbers from 0 to 255")
        raise InputError(f"{path}: images are {images.dtype}, only uint8 (0..255) is read; {hint}")
    if images.ndim not in (3, 4):
        raise InputError(f"{path}: images have shape {images.shape}: (N, H, W) or (N, H, W, C) is allowed")
    if images.size == 0:
        raise InputError(
            f"{path}: images are empty, shape {images.shape}: one sample and one pixel at least are needed"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] > 4:
        raise InputError(f"{path}: images have shape {images.shape}: the last axis is channels, 1 to 4 are allowed")
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _outside(path: Path, marks: np.ndarray, n: int) -> Tensor:
    marks = rows(path, "split", marks, n, (1,), "iub")
    if sorted(set(np.unique(marks).tolist())) != [0, 1]:
        found = ", ".join(str(mark) for mark in np.unique(marks)[:5])
        raise InputError(f"{path}: split holds {found}: 0 (training) and 1 (held out) are needed, both of them")
    return torch.from_numpy(marks.astype(bool))
