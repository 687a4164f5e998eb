"""What features see in a reference set: looked at once, kept on disk, and exchanged as the field does it."""

import contextlib
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.files import cache_folder
from undiffuse.metrics.features.base import Features, fingerprint
from undiffuse.metrics.moments import Moments
from undiffuse.metrics.seen import BATCH, Seen, look

FORMAT = "1"  # of the files in the cache: another one is another name


class Pictures(Protocol):
    """A tensor uint8 (N, C, H, W), or what stands for one: it has a length and gives tensors for slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> UInt8[Tensor, "n c h w"]: ...


def reference(
    features: Features,
    images: Pictures,
    labels: Int64[Tensor, " n"] | None = None,
    keep: bool = True,
    folder: str | Path | None = None,
    say: Callable[[int], object] = lambda seen: None,
) -> Seen:
    """What `look` leaves of a reference set, from the cache where the same features have seen the same pictures.

    The cache knows a set by a hash of its pictures' bytes, in order, and the features by theirs, which covers the
    network and the preparation of pictures. Files that are damaged or do not fit are made anew; a cache that cannot be
    written costs time at the next call and no more.

    Args:
        images: uint8 pictures (N, C, H, W), N >= 2, or what stands for them.
        labels: the class of each (N,); handed on, and not a part of the cache.
        keep: whether features and scores are kept, in what comes back and on disk: N (d + classes) numbers of 4 bytes.
        folder: of the cache; by default `statistics` in the cache folder (UNDIFFUSE_CACHE, or ~/.cache/undiffuse).
        say: called with the number of pictures seen so far, where they must be looked at.

    Raises: InputError as `look`, and for fewer than 2 pictures.
    """
    if len(images) < 2:
        raise InputError(f"a reference set needs 2 pictures or more, not {len(images)}")
    name = f"{fingerprint(FORMAT, features.key, data_hash(images))}.npz"
    path = (cache_folder() / "statistics" if folder is None else Path(folder)) / name
    seen = _read(path, features, len(images), keep)
    if seen is None:
        seen = look(features, (images[i : i + BATCH] for i in range(0, len(images), BATCH)), None, keep, say)
        with contextlib.suppress(InputError):
            _write(path, seen)
    return Seen(seen.name, seen.key, seen.moments, seen.features, seen.scores, labels, seen.is_inception)


def data_hash(images: Pictures) -> str:
    """SHA-256 of a set of pictures: the shape of one, and the bytes of each in order. Streams; 64 digits."""
    digest = hashlib.sha256()
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        if not start:
            digest.update(f"{batch.dtype} {tuple(batch.shape[1:])}\n".encode())
        digest.update(batch.cpu().numpy().tobytes())
    return digest.hexdigest()


def export(seen: Seen, path: str | Path) -> None:
    """Write the moments as the field shares them: an .npz with `mu` (d,) and `sigma` (d, d), float64.

    It also says `n`, `features_name` and `key`, which other programs ignore and `imported` checks.

    Raises: InputError for another ending than .npz, for fewer than 2 samples, and when the file cannot be written.
    """
    _save(Path(path), seen)


def imported(path: str | Path, features: Features) -> Seen:
    """The moments that somebody shares as an .npz of `mu` and `sigma`, taken to be over these features.

    A file without `n` gives moments whose n is None: values over it do not say how many real pictures there were.

    Raises: InputError for a file that is missing or damaged or holds no moments, and for one over other features, which
        is seen by its key where it was exported here, and else by its dimension.
    """
    moments = Moments.load(path)
    with np.load(path, allow_pickle=False) as file:
        said = {name: str(file[name]) for name in ("features_name", "key") if name in file}
    d = len(moments.mean)
    if said.get("key", features.key) != features.key:
        raise InputError(f"{path} is over other features, {said.get('features_name', 'unnamed')}, not {features.name}")
    if features.dim not in (None, d):
        raise InputError(f"{path} is over {d} features a picture, but there are {features.dim} {features.name}")
    return Seen(features.name, features.key, moments, is_inception=features.is_inception)


def _save(path: Path, seen: Seen, **rows: np.ndarray) -> None:
    seen.moments.save(path, features_name=np.array(seen.name), key=np.array(seen.key), **rows)


def _write(path: Path, seen: Seen) -> None:
    kept = {"features": seen.features, "scores": seen.scores}
    _save(path, seen, **{name: rows.numpy() for name, rows in kept.items() if rows is not None})


def _read(path: Path, features: Features, n: int, keep: bool) -> Seen | None:
    """What the file holds; None where it is missing, damaged, of another set, or without what is asked for."""
    try:
        moments = Moments.load(path)
        with np.load(path, allow_pickle=False) as file:
            rows = {name: torch.from_numpy(file[name]) for name in ("features", "scores") if keep and name in file}
            fits = str(file["key"]) == features.key and moments.n == n
        if not fits or (keep and "features" not in rows):
            return None
        if keep and rows["features"].shape != (n, len(moments.mean)):
            return None
        return Seen(features.name, features.key, moments, **rows, is_inception=features.is_inception)
    except (InputError, OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile):
        return None
