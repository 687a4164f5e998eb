"""Writing files so that a reader sees the old content or the new one, never a part."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from undiffuse.errors import InputError


def cache_folder() -> Path:
    """Where things are kept that can be made or fetched again: UNDIFFUSE_CACHE, or a folder of the user's cache.

    The latter is undiffuse in XDG_CACHE_HOME, where that is an absolute path, or else in ~/.cache.
    """
    if chosen := os.environ.get("UNDIFFUSE_CACHE"):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "undiffuse"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there replaces `path` when the block ends without an error.

    The bytes are flushed to the disk before the rename, so that a power cut leaves the old file or the new one.

    Raises: InputError when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ending stays the last one, because writers (Pillow, numpy) choose their format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".partial{path.suffix}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of `path` when the block ends without an error.

    Raises: InputError when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-", suffix=".partial") as room:
            new, old = Path(room, "new"), Path(room, "old")
            new.mkdir()
            yield new
            if not path.exists():
                new.rename(path)
                return
            path.rename(old)
            try:
                new.rename(path)
            except OSError:
                old.rename(path)
                raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
