"""Images from a folder of picture files."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from undiffuse.data.dataset import Dataset, Split, missing, split
from undiffuse.errors import InputError, unknown

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CROPS = ("center", "random")
CONDITIONS = ("label", "none")


def load(
    path: str | Path,
    size: tuple[int, int],
    channels: int = 3,
    crop: str = "center",
    condition: str = "none",
    held_out: float = 0.1,
    skip_corrupt: bool = False,
) -> Split:
    """Read every picture below `path`, in sorted order, scaled to cover `size` and cropped at the centre.

    Rotation by EXIF is applied; 16-bit grey is scaled to 8 bits; a palette becomes colours; of an animation the first
    frame is taken; transparency is laid over white unless `channels` is 4. Hidden files and folders are passed over.

    path: a folder; read are png, jpg, jpeg, webp, bmp, gif, tif and tiff.
    size: height and width in pixels.
    channels: 1 (grey), 3 (colour) or 4 (colour and straight alpha).
    crop: "center" gives samples of `size`; "random" gives an eighth more each way, from which a batch takes its crops.
    condition: "label", the name of the folder directly below `path`, or "none".
    held_out: the fraction to hold out, between 0 and 1.
    skip_corrupt: leave out files that cannot be read, and name them in `Dataset.skipped`.

    Raises: InputError for a missing or empty folder, an unreadable picture, pictures outside class folders and
        options other than the above.
    """
    _check(size, channels, crop, condition)
    root = Path(path).expanduser()
    files = _find(root)
    height, width = size if crop == "center" else (_with_margin(size[0]), _with_margin(size[1]))
    samples = torch.empty(len(files), channels, height, width, dtype=torch.uint8)
    # Threads, because Pillow decodes and resizes outside the interpreter's lock. Each writes rows of its own.
    with ThreadPoolExecutor(min(8, max(2, os.cpu_count() or 2))) as pool:
        read = list(pool.map(partial(_read_into, skip_corrupt=skip_corrupt), samples, files))
    if not any(read):
        raise InputError(f"{root}: none of the {len(files)} images can be read")
    kept = torch.tensor(read)
    skipped = tuple(str(file) for file, good in zip(files, read, strict=True) if not good)
    conditions: dict[str, Tensor] = {}
    classes: tuple[str, ...] = ()
    if condition == "label":
        names = _class_names(root, files)
        classes = tuple(sorted(set(names)))
        number = {name: label for label, name in enumerate(classes)}
        conditions["label"] = torch.tensor([number[name] for name in names])[kept]
    return split(Dataset(root.resolve().name, samples[kept], conditions, classes, skipped), held_out)


def _check(size: tuple[int, int], channels: int, crop: str, condition: str) -> None:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size is {size}: height and width are needed, each 1 or more pixels")
    if channels not in MODES:
        raise InputError(f"channels is {channels}: 1 (grey), 3 (colour) and 4 (colour and alpha) are allowed")
    if crop not in CROPS:
        raise unknown("crop", crop, CROPS)
    if condition not in CONDITIONS:
        raise unknown("condition of a folder", condition, CONDITIONS)


def _with_margin(pixels: int) -> int:
    return -(-pixels * 9 // 8)


def _find(root: Path) -> list[Path]:
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
            f"{outside[0]} is in no class: condition=label needs every image in a folder named after its class, "
            f"{root / '<class>'} ({len(outside)} of {len(files)} are not); condition=none needs no such folders"
        )
    return [part[0] for part in parts]


def _read_into(sample: Tensor, file: Path, skip_corrupt: bool) -> bool:
    """Write the picture in `file` into `sample` (C, H, W) and tell whether it could be read."""
    channels, height, width = sample.shape
    try:
        with Image.open(file) as opened:
            picture = _in_mode(ImageOps.exif_transpose(opened), MODES[channels])
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
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
