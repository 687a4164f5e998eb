"""Pictures in files: how one is read, and a set of them that is decoded where it is asked for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Bool, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from undiffuse.errors import InputError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# A JPEG of many times the size is decoded at 1/2, 1/4 or 1/8, to this many times the size at least. At 2 it takes less
# than half of the time, and pixels differ by less than 1 of 255 (root mean square, benchmarks/data.py).
REDUCED_TO = 2
LEFT_OUT = "data.skip_corrupt=true leaves such files out"
EXIF_ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


class Pictures:
    """Pictures in files, which stands in the place of a tensor uint8 (N, C, H, W): a slice or rows of it are decoded.

    Each is scaled to cover `size` and cropped at the centre. It is pickled as the list of its files, for other
    processes.

    size: height and width in pixels.
    channels: 1 (grey), 3 (colour) or 4 (colour and straight alpha).
    nearest: for maps of classes: a palette's numbers stay what they are, and no value is made that was not there.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self, files: Sequence[str | Path], size: tuple[int, int], channels: int, nearest: bool = False
    ) -> None:
        # One array of bytes: a million Path objects are half a gigabyte, which every worker would come to copy.
        self._files = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        self.size, self.channels, self.nearest = size, channels, nearest

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), self.channels, *self.size))

    @property
    def nbytes(self) -> int:
        """What all of them take in memory."""
        return self.shape.numel()

    def __len__(self) -> int:
        return len(self._files)

    def subset(self, indices: Int64[Tensor, " count"]) -> "Pictures":
        """The pictures at `indices`, in that order, not decoded."""
        chosen = Pictures((), self.size, self.channels, self.nearest)
        chosen._files = self._files[indices.numpy()]
        return chosen

    def __getitem__(self, rows: slice | Int64[Tensor, " count"]) -> UInt8[Tensor, "count channels height width"]:
        """Some of them, decoded. Raises: InputError naming a file that cannot be read."""
        chosen = self._files[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return self._decoded(chosen, skip_corrupt=False)[0]

    def decoded(
        self, skip_corrupt: bool = False
    ) -> tuple[UInt8[Tensor, "n channels height width"], Bool[Tensor, " n"]]:
        """All of them, and which could be read; what could not is 0.

        Raises: InputError naming a file that cannot be read, unless it may be skipped.
        """
        return self._decoded(self._files, skip_corrupt)

    def readable(self, skip_corrupt: bool = False) -> Bool[Tensor, " n"]:
        """Which can be read, without keeping any.

        Where they may be skipped each is decoded, once: nothing less tells that a file is whole. Else their headers
        are read.

        Raises: InputError naming a file that cannot be read, unless it may be skipped.
        """

        def read(file: bytes) -> bool:
            if skip_corrupt:
                return _read_into(torch.empty(self.shape[1:], dtype=torch.uint8), file, True, self.nearest)
            return _read_header(file)

        return torch.tensor(_in_threads(read, self._files), dtype=torch.bool)

    def _decoded(self, files: np.ndarray, skip_corrupt: bool) -> tuple[Tensor, Tensor]:
        samples = torch.zeros(len(files), *self.shape[1:], dtype=torch.uint8)
        read = partial(_read_into, skip_corrupt=skip_corrupt, nearest=self.nearest)
        # Each writes rows of its own.
        return samples, torch.tensor(_in_threads(read, samples, files), dtype=torch.bool)


def processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _in_threads(read: Callable[..., bool], *columns: Any) -> list[bool]:
    """`read` of every row. Threads help, because Pillow decodes and resizes outside the interpreter's lock."""
    if torch.utils.data.get_worker_info() is not None or len(columns[0]) == 1:  # the workers share the processors
        return list(map(read, *columns))
    with ThreadPoolExecutor(min(8, max(2, processors()))) as pool:
        return list(pool.map(read, *columns))


def _read_into(sample: Tensor, file: bytes, skip_corrupt: bool, nearest: bool) -> bool:
    """Write the picture in `file` into `sample` (C, H, W) and tell whether it could be read."""
    channels, height, width = sample.shape
    try:
        with Image.open(os.fsdecode(file)) as opened:
            if not nearest:
                _reduce(opened, height, width)
            turned = ImageOps.exif_transpose(opened)
            picture = _class_map(turned) if nearest else _in_mode(turned, MODES[channels])
        rule = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
        picture = ImageOps.fit(picture, (width, height), rule)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        if skip_corrupt:
            return False
        raise _unreadable(file, error) from error
    sample.copy_(torch.from_numpy(np.array(picture).reshape(height, width, channels)).permute(2, 0, 1))
    return True


def _read_header(file: bytes) -> bool:
    try:
        with Image.open(os.fsdecode(file)) as opened:
            _check_mode(opened)
    except Exception as error:
        raise _unreadable(file, error) from error
    return True


def _unreadable(file: bytes, error: Exception) -> InputError:
    path = Path(os.fsdecode(file))
    if isinstance(error, FileNotFoundError):
        return InputError(f"cannot read the image {path} (it is no longer there)")
    reason = "it is empty" if path.stat().st_size == 0 else str(error) or type(error).__name__
    return InputError(f"cannot read the image {path} ({reason}); {LEFT_OUT}")


def _reduce(picture: Image.Image, height: int, width: int) -> None:
    """Have a JPEG decoded at a fraction of its size where that is enough to cover (height, width) still."""
    wanted = (width * REDUCED_TO, height * REDUCED_TO)
    if picture.getexif().get(EXIF_ORIENTATION) in ON_ITS_SIDE:
        wanted = wanted[::-1]
    picture.draft(None, wanted)  # None leaves the mode; other formats ignore all of it


def read_picture(file: str | Path, channels: int) -> UInt8[Tensor, "channels height width"]:
    """One picture at its own size, read as `folder.load` does.

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


def read_mask(file: str | Path) -> UInt8[Tensor, "height width"]:
    """A map of classes at its own size, from a grey picture or a palette's numbers. Raises: InputError."""
    try:
        with Image.open(file) as opened:
            values = torch.from_numpy(np.array(_class_map(ImageOps.exif_transpose(opened))))
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise InputError(f"cannot read the image {file} ({error or type(error).__name__})") from error
    return values


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
    _check_mode(picture)
    if picture.mode.startswith("I"):
        # Pillow would clip at 255. Mode "I" is what its older versions make of a 16-bit PNG.
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    if mode == "RGBA":
        return picture.convert("RGBA")
    if "transparency" in picture.info or picture.mode[-1] in "Aa":
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB").convert(mode) if picture.mode != "L" else picture.convert(mode)


def _check_mode(picture: Image.Image) -> None:
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a known range")
