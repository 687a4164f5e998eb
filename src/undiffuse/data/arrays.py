"""Images from a numpy file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.dataset import Dataset, Split, missing, split
from undiffuse.errors import InputError, unknown

# What is read from the file for each condition; anything else in it is left alone, unread.
KEYS = {
    "none": ("images", "split"),
    "label": ("images", "split", "labels", "classes"),
    "vector": ("images", "split", "vectors"),
}
MOST_CLASSES = 1_000_000
TO_UINT8 = {
    "f": "if they lie in 0..1, convert with (images * 255).round().clip(0, 255).astype('uint8')",
    "u": "if they are 16-bit, convert with (images // 257).astype('uint8')",
    "i": "if they lie in 0..255, convert with images.astype('uint8')",
    "b": "convert with images.astype('uint8') * 255",
}


def load(path: str | Path, held_out: float = 0.1, condition: str = "label") -> Split:
    """Read an `.npz` with named arrays, or an `.npy` with images only.

    images: uint8 (N, H, W) or (N, H, W, C) with 1 to 4 channels.
    labels: integers (N,), 0 and up; read when `condition` is "label".
    classes: the names of the labels (optional; the number itself where absent).
    vectors: finite numbers (N, d); read when `condition` is "vector".
    split: (N,), 0 for training and 1 for held out (optional; then it counts and not the fraction).

    held_out: the fraction to hold out, between 0 and 1.
    condition: "label", "vector" or "none".

    Raises: InputError for a missing or damaged file, pickled objects, and arrays other than the above.
    """
    if condition not in KEYS:
        raise unknown("condition", condition, KEYS)
    path = Path(path).expanduser()
    arrays = _read(path, KEYS[condition])
    samples = _samples(path, arrays["images"])
    conditions: dict[str, Tensor] = {}
    classes: tuple[str, ...] = ()
    if condition == "label":
        conditions["label"] = labels = _labels(path, arrays, len(samples))
        classes = _classes(path, arrays.get("classes"), int(labels.max()) + 1)
    elif condition == "vector":
        conditions["vector"] = _vectors(path, arrays, len(samples))
    dataset = Dataset(path.stem, samples, conditions, classes)
    if "split" not in arrays:
        return split(dataset, held_out)
    outside = _outside(path, arrays["split"], len(dataset))
    return Split(dataset.subset((~outside).nonzero()[:, 0]), dataset.subset(outside.nonzero()[:, 0]))


def _read(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
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
                arrays = {key: np.asarray(loaded[key]) for key in wanted if key in keys}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged bytes
        if "pickle" in str(error):
            reason = "pickled objects, or no .npz or .npy file at all: only plain arrays are read"
        else:
            reason = f"damaged or cut short ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise InputError(f"cannot read {path}: {reason}") from error
    if "images" not in arrays:
        raise InputError(f"{path} has no array 'images': it holds {', '.join(keys) or 'nothing'}")
    return arrays


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


def _rows(path: Path, arrays: dict[str, np.ndarray], name: str, ndim: int, kinds: str, n: int) -> np.ndarray:
    """The array `name` with `ndim` axes, a row per image, and a dtype of these numpy kinds."""
    if name not in arrays:
        raise InputError(
            f"{path} has no array {name!r}, only images: add it, or use another condition (condition=none)"
        )
    rows = arrays[name]
    if rows.dtype.kind not in kinds:
        allowed = "integers or floats" if "f" in kinds else "integers"
        raise InputError(f"{path}: {name} are {rows.dtype}: {allowed} are allowed")
    if rows.ndim != ndim or rows.size == 0:
        raise InputError(f"{path}: {name} have shape {rows.shape}: {('(N,)', '(N, d)')[ndim - 1]} is needed")
    if len(rows) != n:
        raise InputError(f"{path}: there are {len(rows)} {name} for {n} images: one for each is needed")
    return rows


def _labels(path: Path, arrays: dict[str, np.ndarray], n: int) -> Tensor:
    labels = _rows(path, arrays, "labels", 1, "iu", n)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CLASSES:
        raise InputError(f"{path}: labels go from {low} to {high}: 0 to {MOST_CLASSES - 1} is allowed")
    return torch.from_numpy(labels.astype(np.int64))


def _classes(path: Path, names: np.ndarray | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(str(label) for label in range(count))
    if names.ndim != 1 or len(names) < count:
        raise InputError(f"{path}: classes have shape {names.shape}: a name for each of the {count} labels is needed")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)


def _vectors(path: Path, arrays: dict[str, np.ndarray], n: int) -> Tensor:
    with np.errstate(over="ignore"):
        vectors = _rows(path, arrays, "vectors", 2, "fiu", n).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: {len(bad)} vectors are not finite in float32, the first in row {bad[0]}")
    return torch.from_numpy(vectors)


def _outside(path: Path, marks: np.ndarray, n: int) -> Tensor:
    marks = _rows(path, {"split": marks}, "split", 1, "iub", n)
    if sorted(set(np.unique(marks).tolist())) != [0, 1]:
        found = ", ".join(str(mark) for mark in np.unique(marks)[:5])
        raise InputError(f"{path}: split holds {found}: 0 (training) and 1 (held out) are needed, both of them")
    return torch.from_numpy(marks.astype(bool))
