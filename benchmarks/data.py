"""How fast a folder of large JPEGs becomes batches: ours against a Dataset and DataLoader written by hand.

    python benchmarks/data.py [--pictures 2000] [--sizes 64,256] [--workers 0,1,2] [--out results/data.json]

The pictures are fields of 1 / f noise, as natural pictures are, made in a temporary folder. Both sides shuffle, decode,
shrink by Lanczos, cut at the centre and give uint8 batches, and take turns; the median of their rates is told. Ours
decodes JPEGs at a fraction of their size where that is enough: what that costs in pixels is measured besides, and
`whole` is ours without it. With 0 workers ours decodes in threads. Where `datasets` or `webdataset` are installed, they
are measured too.
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from undiffuse.data import pictures
from undiffuse.data.augment import Augment
from undiffuse.data.dataset import Dataset as Ours
from undiffuse.data.feed import Feed
from undiffuse.data.pictures import Pictures, processors

FIELDS = 16  # that differ; the other pictures are these, shifted
Batches = Iterator[Tensor]


def make(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """So many JPEGs (quality 90) of 1 / f noise."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    files, fields = [], []
    for i in range(count):
        if i < FIELDS:
            spectrum = np.fft.rfft2(draw.normal(size=(3, height, width))) / frequency
            spectrum[:, 0, 0] = 0
            field = np.fft.irfft2(spectrum, (height, width))
            grey = 2 * field.mean(0) + 0.5 * field  # colours of a picture go together
            fields.append(np.uint8((128 + 55 * grey / grey.std()).clip(0, 255)).transpose(1, 2, 0))
        files.append(folder / f"{i:06d}.jpg")
        Image.fromarray(np.roll(fields[i % FIELDS], 37 * i, (0, 1))).save(files[-1], quality=90)
    return files


def ours(files: list[Path], size: int, workers: int, batch: int, whole: bool = False) -> Batches:
    """Batches of a `Feed`."""
    pictures.REDUCED_TO = 1 << 16 if whole else 2
    dataset = Ours("benchmark", Pictures(files, (size, size), 3))
    feed = Feed(dataset, lambda x: x, Augment([]), batch, 0, torch.device("cpu"), decoders=workers)
    try:
        for step in range(1 << 30):
            yield feed.batch(step)[0]
    finally:
        feed.close()


class Written(Dataset[Tensor]):
    """A data set as it is usually written: a picture an item."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        picture = Image.open(self.files[index]).convert("RGB")
        picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def by_hand(files: list[Path], size: int, workers: int, batch: int) -> Batches:
    """Batches of a DataLoader over `Written`."""
    loader = DataLoader(
        Written(files, size), batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def by_datasets(files: list[Path], size: int, workers: int, batch: int) -> Batches:
    """Batches of a DataLoader over an imagefolder of `datasets`."""
    import datasets

    def changed(rows: dict[str, list[Any]]) -> dict[str, list[Tensor]]:
        fitted = [ImageOps.fit(p.convert("RGB"), (size, size), Image.Resampling.LANCZOS) for p in rows["image"]]
        return {"image": [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in fitted]}

    made = datasets.load_dataset("imagefolder", data_dir=str(files[0].parent), split="train").with_transform(changed)
    while True:
        for rows in DataLoader(made, batch, shuffle=True, num_workers=workers, drop_last=True):
            yield rows["image"]


def by_webdataset(files: list[Path], size: int, workers: int, batch: int) -> Batches:
    """Batches of webdataset, from shards of 100 pictures that are written first."""
    import webdataset

    with tempfile.TemporaryDirectory() as folder:
        shards = []
        for first in range(0, len(files), 100):
            shards.append(str(Path(folder, f"{first:06d}.tar")))
            with tarfile.open(shards[-1], "w") as shard:
                for file in files[first : first + 100]:
                    shard.add(file, file.name)

        def fitted(picture: Image.Image) -> Tensor:
            cut = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(cut)).permute(2, 0, 1)

        made = webdataset.WebDataset(shards, shardshuffle=True, empty_check=False).shuffle(1000).decode("pil")
        made = made.to_tuple("jpg").map_tuple(fitted).batched(batch, partial=False)
        while True:
            for (rows,) in webdataset.WebLoader(made, batch_size=None, num_workers=workers):
                yield rows


def rate(batches: Batches, batch: int, warm: int, timed: int) -> float:
    """Images a second, once `warm` batches have gone by."""
    for _ in range(warm):
        next(batches)
    began = time.perf_counter()
    for _ in range(timed):
        next(batches)
    return timed * batch / (time.perf_counter() - began)


def reduced(files: list[Path], size: int) -> list[dict[str, Any]]:
    """What decoding at a fraction of the size gives and takes, by how far above the wanted size it stops."""
    rows: list[dict[str, Any]] = []
    exact: Tensor | None = None
    for least in (None, 4, 3, 2, 1):
        pictures.REDUCED_TO = 1 << 16 if least is None else least
        some = Pictures(files[: 2 * FIELDS], (size, size), 3)
        one = torch.ones(1, dtype=torch.int64)
        began = time.perf_counter()
        found = torch.cat([some[one * i] for i in range(len(some))]).double()
        seconds = (time.perf_counter() - began) / len(some)
        exact = found if exact is None else exact
        rows.append(
            {
                "size": size, "reduced_to": least, "milliseconds": round(seconds * 1e3, 2),
                "rms": round(float((found - exact).square().mean().sqrt()), 3),
                "most": float((found - exact).abs().max()),
            }
        )  # fmt: skip
        print(
            f"{size:4d} pixels, decoded to {least or 'all':>3} times the size at least: {seconds * 1e3:5.1f} ms a "
            f"picture, pixels differ by {rows[-1]['rms']:.2f} (root mean square), {rows[-1]['most']:.0f} at most"
        )
    pictures.REDUCED_TO = 2
    return rows


def hardware() -> str:
    """The processor, as it is called."""
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{processors()} cores of {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--sizes", default="64,256", help="the heights and widths to train at")
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="that are timed, after those that workers fetch ahead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan  # other work takes from the workers
    sides: dict[str, Callable[..., Batches]] = {
        "ours": ours,
        "ours, whole": functools.partial(ours, whole=True),
        "by hand": by_hand,
    }
    for name, peer in (("datasets", by_datasets), ("webdataset", by_webdataset)):
        if importlib.util.find_spec(name):
            sides[name] = peer
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), given.pictures, given.width, given.height)
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(f"{len(files)} JPEGs of {given.width}x{given.height}, {kilobytes:.0f} kB each; {hardware()}")
        sizes = [int(size) for size in given.sizes.split(",")]
        fractions = [row for size in sizes for row in reduced(files, size)]
        began = time.perf_counter()
        Pictures(files, (64, 64), 3).readable()
        headers = len(files) / (time.perf_counter() - began)
        print(f"headers read: {headers:,.0f} a second")
        for size in sizes:
            for workers in (int(count) for count in given.workers.split(",")):
                found: dict[str, list[float]] = {name: [] for name in sides}
                for _ in range(given.repeats):
                    for name, start in sides.items():
                        batches = start(files, size, workers, given.batch)
                        found[name].append(rate(batches, given.batch, 2 * workers + 1, given.batches))
                        batches.close()  # type: ignore[attr-defined]
                row = {name: round(statistics.median(rates), 1) for name, rates in found.items()}
                rows.append({"size": size, "workers": workers, **row})
                told = "  ".join(f"{name} {value:7.1f}" for name, value in row.items())
                print(f"{size:4d} pixels, {workers} workers, images/s: {told}", flush=True)
    if given.out:
        about = {
            "hardware": hardware(), "torch": torch.__version__, "pillow": PIL.__version__,
            "python": platform.python_version(),
            "pictures": given.pictures, "width": given.width, "height": given.height, "kilobytes": round(kilobytes, 1),
            "batch": given.batch, "repeats": given.repeats, "headers_per_second": round(headers),
            "busy processors before": round(busy, 2),
        }  # fmt: skip
        given.out.write_text(
            json.dumps({"about": about, "images_per_second": rows, "fractions": fractions}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
