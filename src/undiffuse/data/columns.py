"""Conditions as they stand in arrays and tables -> tensors with a row per sample, by their kind.

The kinds are those of `undiffuse.conditioning.CONDITIONS`; what they become is what those read.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from undiffuse.errors import InputError, unknown

MOST_CLASSES = MOST_TOKENS = 1_000_000
PICTURES = ("image", "encoded-image", "mask")  # kinds whose value in a table is the path of a picture
KINDS = ("label", "labels", "vector", *PICTURES, "tokens", "embeddings")
Conditions = Mapping[str, str | Mapping[str, Any]]  # name -> kind, or {"name": kind, argument: value}


class Column(NamedTuple):
    """The values of one condition, (N, ...), and the names of its classes where it has some."""

    values: Tensor
    classes: tuple[str, ...] = ()


def wanted(conditions: Conditions) -> dict[str, dict[str, Any]]:
    """{name: {"name": kind, ...}}. Raises: InputError for kinds that are not read."""
    asked = {name: {"name": given} if isinstance(given, str) else dict(given) for name, given in conditions.items()}
    for arguments in asked.values():
        if arguments["name"] not in KINDS:
            raise unknown("kind of condition", arguments["name"], KINDS)
    return asked


# -- arrays -----------------------------------------------------------------------------------------------------------


def rows(path: Path, name: str, array: np.ndarray, n: int, ndim: tuple[int, ...], kinds: str) -> np.ndarray:
    """`array` with as many axes, a row per sample, and a dtype of these numpy kinds. Raises: InputError."""
    if array.dtype.kind not in kinds:
        names = {"i": "integers", "f": "floats", "b": "truth values", "U": "names"}
        raise InputError(
            f"{path}: {name} are {array.dtype}: {' or '.join(names[k] for k in kinds if k in names)} are allowed"
        )
    if array.ndim not in ndim or array.size == 0:
        shapes = {
            1: "(N,)",
            2: "(N, d)",
            3: "(N, H, W)" if 4 in ndim or kinds == "iub" else "(N, L, d)",
            4: "(N, H, W, C)",
        }
        raise InputError(f"{path}: {name} have shape {array.shape}: {' or '.join(shapes[k] for k in ndim)} is needed")
    if len(array) != n:
        raise InputError(f"{path}: there are {len(array)} {name} for {n} images: one for each is needed")
    return array


def of_array(
    path: Path, kind: str, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None = None
) -> Column:
    """The array `name` of the file `path` as a column of n rows. Raises: InputError for arrays that are none."""
    return _OF_ARRAY[kind](path, name, array, n, class_names)


def _label_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    labels = rows(path, name, array, n, (1,), "iuUS")
    if labels.dtype.kind in "US":
        return label_names([_text(value) for value in labels.tolist()])
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CLASSES:
        raise InputError(f"{path}: {name} go from {low} to {high}: 0 to {MOST_CLASSES - 1} is allowed")
    return Column(torch.from_numpy(labels.astype(np.int64)), _named(path, class_names, high + 1))


def _labels_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    holds = rows(path, name, array, n, (2,), "iub")
    if not np.isin(holds, (0, 1)).all():
        raise InputError(
            f"{path}: {name} hold {np.unique(holds)[:5].tolist()}: 0 and 1, one for each class, are needed"
        )
    return Column(torch.from_numpy(holds.astype(np.uint8)), _named(path, class_names, holds.shape[1]))


def _vector_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    numbers = rows(path, name, array, n, (1, 2), "fiub")
    return Column(torch.from_numpy(_finite(path, name, numbers if numbers.ndim == 2 else numbers[:, None])))


def _picture_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    pictures = rows(path, name, array, n, (3, 4), "iu")
    if pictures.dtype != np.uint8:
        raise InputError(f"{path}: {name} are {pictures.dtype}, only uint8 (0..255) is read for pictures")
    pictures = pictures if pictures.ndim == 4 else pictures[..., None]
    return Column(torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))))


def _mask_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    return Column(mask_classes(str(path), torch.from_numpy(rows(path, name, array, n, (3,), "iub").astype(np.int64))))


def _tokens_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    numbers = rows(path, name, array, n, (2,), "iu").astype(np.int64)
    if int(numbers.min()) < -1 or int(numbers.max()) < 0:
        raise InputError(f"{path}: {name} go from {numbers.min()} to {numbers.max()}: 0 and up, and -1 for padding")
    if int(numbers.max()) >= MOST_TOKENS:
        raise InputError(f"{path}: {name} go up to {numbers.max()}: token numbers under {MOST_TOKENS} are allowed")
    return Column(torch.from_numpy(numbers))


def _embeddings_array(path: Path, name: str, array: np.ndarray, n: int, class_names: np.ndarray | None) -> Column:
    return Column(torch.from_numpy(_finite(path, name, rows(path, name, array, n, (3,), "fiu"))))


_OF_ARRAY: dict[str, Callable[[Path, str, np.ndarray, int, np.ndarray | None], Column]] = {
    "label": _label_array,
    "labels": _labels_array,
    "vector": _vector_array,
    "image": _picture_array,
    "encoded-image": _picture_array,
    "mask": _mask_array,
    "tokens": _tokens_array,
    "embeddings": _embeddings_array,
}


def _finite(path: Path, name: str, numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: {len(bad)} {name} are not finite in float32, the first in row {bad[0]}")
    return numbers


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _named(path: Path, names: np.ndarray | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(str(label) for label in range(count))
    if names.ndim != 1 or len(names) < count:
        raise InputError(f"{path}: classes have shape {names.shape}: a name for each of the {count} labels is needed")
    found = tuple(_text(name) for name in names)
    if len(set(found)) < len(found):
        raise InputError(f"{path}: classes name {next(n for n in found if found.count(n) > 1)!r} twice")
    return found


# -- tables -----------------------------------------------------------------------------------------------------------


def of_table(where: str, kind: str, name: str, values: Sequence[object]) -> Column:
    """A column of a table, its values texts (CSV) or what JSON gives, as a tensor. Raises: InputError naming the row.

    label: a name or number; labels: a list, or a text with ";" between; vector: a number, a list, or a text of numbers
    with spaces, commas or semicolons between; tokens: likewise, of integers.
    """
    if kind == "label":
        for row, value in enumerate(values):
            if value is None or isinstance(value, list | dict) or _plain(value) == "":
                raise InputError(f"{where}: {name} of row {row + 1} is {value!r}: the name of a class is needed")
        return label_names([_plain(value) for value in values])
    if kind == "labels":
        sets = [[_plain(one) for one in _listed(value, ";")] for value in values]
        classes = _sorted({one for held in sets for one in held})
        if not classes:
            raise InputError(f"{where}: {name} names no class in any row")
        holds = torch.tensor([[one in held for one in classes] for held in map(set, sets)], dtype=torch.uint8)
        return Column(holds, classes)
    if kind == "vector":
        numbers = [_numbers(where, name, row, value, float) for row, value in enumerate(values)]
        lengths = sorted({len(row) for row in numbers})
        if len(lengths) != 1:
            raise InputError(
                f"{where}: {name} has {lengths[0]} to {lengths[-1]} numbers: as many in every row are needed"
            )
        return Column(torch.from_numpy(_finite(Path(where), name, np.array(numbers))))
    if kind == "tokens":
        sequences = [_numbers(where, name, row, value, int) for row, value in enumerate(values)]
        longest = max(map(len, sequences))
        filled = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in sequences], dtype=torch.int64)
        if bool((filled < -1).any()) or int(filled.max()) < 0:
            raise InputError(f"{where}: {name} must be integers from 0, not {int(filled.min())}")
        if int(filled.max()) >= MOST_TOKENS:
            raise InputError(f"{where}: {name} go up to {int(filled.max())}: under {MOST_TOKENS} is allowed")
        return Column(filled)
    raise InputError(f"{where}: a condition of the kind {kind!r} is read from arrays, not from a table")


def label_names(names: Sequence[str]) -> Column:
    """Names as numbers, in the order of the sorted names (numbers by size)."""
    classes = _sorted(set(names))
    number = {name: label for label, name in enumerate(classes)}
    return Column(torch.tensor([number[name] for name in names]), classes)


def mask_classes(where: str, masks: Tensor) -> Tensor:
    """Maps of integers (N, H, W) as classes from 0; black and white, 0 and 255, become 0 and 1. Raises: InputError."""
    if bool((masks < 0).any()):
        raise InputError(f"{where}: a mask holds {int(masks.min())}: classes from 0 are needed")
    if int(masks.max()) > 255:
        raise InputError(f"{where}: a mask holds class {int(masks.max())}: 0 to 255 is allowed")
    if bool(((masks == 0) | (masks == 255)).all()):
        masks = masks // 255
    return masks.to(torch.uint8)


def _sorted(names: set[str]) -> tuple[str, ...]:
    numeric = all(re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", name) for name in names)
    return tuple(sorted(names, key=lambda name: (float(name), name)) if numeric else sorted(names))


def _plain(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value).strip()


def _listed(value: object, between: str) -> list[object]:
    if value is None:
        return []
    if isinstance(value, str):
        if value.strip().startswith("["):
            try:
                read = json.loads(value)
                return list(read)
            except ValueError:
                pass
        return [part for part in re.split(between, value.strip()) if part.strip()]
    return list(value) if isinstance(value, list) else [value]


def _numbers(where: str, name: str, row: int, value: object, kind: type[int] | type[float]) -> list[Any]:
    try:
        parts = _listed(value, r"[\s,;]+")
        numbers = [kind(part) for part in parts]  # type: ignore
        if not numbers or (kind is int and any(isinstance(part, float) and part != int(part) for part in parts)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        what = "integers" if kind is int else "numbers"
        raise InputError(f"{where}: {name} of row {row + 1} is {value!r:.60}: {what} are needed") from error
    return numbers
