"""Pictures that are decoded where they are asked for: the same bits as those read into memory, whoever decodes them."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.codecs import Pixels
from undiffuse.data import Augment, Dataset, Flip, Geometric, RandomCrop, ahead, folder, memory, pictures
from undiffuse.data.feed import Feed
from undiffuse.data.pictures import Pictures
from undiffuse.errors import InputError

SEVERAL = [{"size": (8, 12)}, {"size": (9, 7), "crop": "random", "channels": 1}, {"size": (8, 8), "channels": 4}]


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    """A picture that has no second, smooth as photographs are."""
    draw = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty in two folders, of several kinds and sizes; one is cut short, behind its header."""
    for i in range(20):
        ending, size = ("jpg", "png", "webp", "gif")[i % 4], (20 + 7 * i, 90 - 3 * i)
        picture(tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.{ending}", i, size)
    return tmp_path / "photos"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    """Both to the bit, the first decoded and the second in memory."""
    assert isinstance(ours.samples, Pictures) and isinstance(theirs.samples, torch.Tensor)
    assert torch.equal(ours.samples[:], theirs.samples) and ours.shape == theirs.shape
    assert ours.conditions.keys() == theirs.conditions.keys()
    assert all(torch.equal(values, theirs.conditions[name]) for name, values in ours.conditions.items())
    assert (ours.classes, ours.skipped, ours.name) == (theirs.classes, theirs.skipped, theirs.name)


@pytest.mark.parametrize("options", SEVERAL)
def test_both_ways_give_the_same_data(photos, options):
    cut_short(photos / "b" / "01.png")
    given = {"conditions": {"label": "label"}, "held_out": 0.3, "skip_corrupt": True, **options}
    lazy, held = (folder.load(photos, memory=memory, **given) for memory in ("never", "always"))
    assert len(lazy.train.skipped) == 1 and len(lazy.train) + len(lazy.held_out) == 19
    for ours, theirs in ((lazy.train, held.train), (lazy.held_out, held.held_out)):
        assert_same(ours, theirs)


def test_both_ways_read_the_same_table(photos):
    rows = [f"a/{i:02d}.{('jpg', 'png', 'webp', 'gif')[i % 4]},{i / 2},b/01.png" for i in (8, 0, 2, 12, 4)]
    (photos / "metadata.csv").write_text("file_name,age,low\n" + "\n".join(rows) + "\n")
    given = {"conditions": {"age": "vector", "low": {"name": "image", "factor": 2}}, "held_out": 0.3}
    lazy, held = (folder.load(photos, (8, 8), memory=memory, **given) for memory in ("never", "always"))
    assert_same(lazy.train, held.train)
    assert_same(lazy.held_out, held.held_out)


def test_rows_and_slices_are_those_of_a_tensor(photos):
    files = sorted(photos.rglob("*.*"))
    some = Pictures(files, (6, 9), 3)
    whole, kept = some.decoded()
    assert kept.all() and some.shape == whole.shape == (20, 3, 6, 9) and some.dtype == whole.dtype
    assert len(some) == 20 and some.nbytes == whole.nbytes
    rows = torch.tensor([7, 0, 7, 19])
    for chosen in (rows, slice(3), slice(5, 9), slice(0, 0), torch.empty(0, dtype=torch.int64)):
        assert torch.equal(some[chosen], whole[chosen])
    assert torch.equal(some.subset(rows)[1:], whole[rows][1:])
    assert torch.equal(pickle.loads(pickle.dumps(some))[rows], whole[rows])


def fed(samples: torch.Tensor | Pictures, decoders: int | None = None) -> Feed:
    augment = Augment([RandomCrop(6, 8), Flip()])
    return Feed(Dataset("x", samples), lambda x: x, augment, 7, 3, torch.device("cpu"), decoders=decoders)


@pytest.mark.parametrize("decoders", [0, 2])
def test_batches_are_a_function_of_the_step_whoever_decodes_them(photos, decoders):
    some = Pictures(sorted(photos.rglob("*.*")), (7, 9), 3)
    held, lazy = fed(some.decoded()[0]), fed(some, decoders)
    before = torch.get_rng_state()
    for step in (0, 1, 2, 3, 9, 10, 4):  # across epochs, and resumed elsewhere
        (samples, _, seeds), (ours, _, our_seeds) = held.batch(step), lazy.batch(step)
        assert torch.equal(samples, ours) and torch.equal(seeds, our_seeds) and samples.shape == (7, 3, 6, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert lazy.waited > 0
    assert len(multiprocessing.active_children()) == decoders
    lazy.close()
    assert not multiprocessing.active_children()
    assert torch.equal(lazy.batch(5)[0], held.batch(5)[0])  # they start again
    lazy.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU to wait for")
@pytest.mark.parametrize("decoders", [None, 2])
def test_no_batch_waits_for_the_device(photos, decoders):
    some = Pictures(sorted(photos.rglob("*.*")), (7, 9), 3)
    augment = Augment([RandomCrop(6, 8), Flip(), Geometric(0.5)])
    dataset = Dataset("x", some if decoders else some[:], {"pair": some[:]})
    feed = Feed(
        dataset, Pixels().encode, augment, 7, 3, torch.device("cuda"), ["pair"], told=["told"], decoders=decoders
    )
    feed.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [feed.batch(step)[0] for step in (1, 2, 3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        feed.close()
    assert all(batch.shape == (7, 3, 6, 8) and batch.is_cuda for batch in batches)


def test_samples_in_memory_need_no_workers(monkeypatch):
    assert ahead.workers(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), 4) == 0
    for processors, most in ((2, 2), (64, 8)):
        monkeypatch.setattr(ahead, "processors", lambda found=processors: found)
        assert ahead.workers(Pictures([], (1, 1), 1), None) == most
    assert ahead.workers(Pictures([], (1, 1), 1), 0) == 0
    assert pictures.processors() >= 1


def test_a_broken_header_is_found_before_training(photos):
    (photos / "a" / "00.jpg").write_text("words")
    with pytest.raises(InputError, match=r"00\.jpg \(cannot identify.*data\.skip_corrupt=true"):
        folder.load(photos, (4, 4), memory="never")
    Image.new("F", (8, 8)).save(photos / "a" / "00.jpg", format="TIFF")
    with pytest.raises(InputError, match=r"00\.jpg \(.*floating-point"):
        folder.load(photos, (4, 4), memory="never")


@pytest.mark.parametrize("decoders", [0, 2])
def test_a_file_that_broke_meanwhile_is_named(photos, decoders):
    feed = fed(Pictures(sorted(photos.rglob("*.*")), (7, 9), 3), decoders)
    cut_short(photos / "b" / "01.png")
    (photos / "a" / "02.webp").unlink()
    with pytest.raises(InputError, match=r"(01\.png \(.*skip_corrupt|02\.webp \(it is no longer there\))") as raised:
        for step in range(4):
            feed.batch(step)
    assert "Traceback" not in str(raised.value) and "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_told(photos):
    feed = fed(Pictures(sorted(photos.rglob("*.*")), (7, 9), 3), 1)
    feed.batch(0)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(InputError, match=r"a process that decodes pictures ended: .*data\.workers=0"):
        for step in range(1, 9):
            feed.batch(step)


def test_a_large_jpeg_is_decoded_at_a_fraction_that_still_covers(tmp_path, monkeypatch):
    exif = Image.Exif()
    for i, orientation in enumerate((1, 6, 8)):
        exif[pictures.EXIF_ORIENTATION] = orientation
        picture(tmp_path / f"{i}.jpg", i, (400, 200), exif=exif, quality=95)
    some = Pictures(sorted(tmp_path.iterdir()), (20, 40), 3)
    sizes = []
    real = pictures._in_mode
    monkeypatch.setattr(pictures, "_in_mode", lambda shown, mode: (sizes.append(shown.size), real(shown, mode))[1])
    reduced = some[torch.tensor([0])], some[torch.tensor([1])], some[torch.tensor([2])]
    assert sizes == [(100, 50), (100, 200), (100, 200)]  # a quarter and a half, at least twice the sample
    monkeypatch.setattr(pictures, "REDUCED_TO", 10**6)
    difference = torch.cat(reduced).float() - some[:].float()
    assert sizes[3:] and max(sizes[3:]) == (400, 200)
    assert difference.abs().max() <= 8 and difference.square().mean().sqrt() < 1.5


def test_what_fits_is_kept_in_memory(photos, monkeypatch):
    for left, kept in ((3 * 20 * 3 * 16, True), (3 * 20 * 3 * 16 - 1, False)):
        monkeypatch.setattr(memory, "free", lambda left=left: left)
        assert isinstance(folder.load(photos, (4, 4)).train.samples, torch.Tensor) == kept
    monkeypatch.setattr(memory, "free", lambda: None)
    assert memory.fits("auto", 2**30) and not memory.fits("auto", 2**30 + 1)
    assert memory.fits("always", 2**60) and not memory.fits("never", 1)
    with pytest.raises(InputError, match="unknown memory 'sometimes'"):
        memory.fits("sometimes", 1)


def test_free_memory_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    told, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    told.write_text("MemTotal:  4000 kB\nMemAvailable:   3000 kB\n")
    assert memory.free(told, group) == 3000 * 1024
    (group / "memory.current").write_text("1000000\n")
    (group / "memory.stat").write_text("anon 200000\ninactive_file 600000\n")
    (group / "memory.max").write_text("max\n")
    assert memory.free(told, group) == 3000 * 1024
    (group / "memory.max").write_text("2000000\n")
    assert memory.free(told, group) == 2_000_000 - (1_000_000 - 600_000)
    assert memory.free() > 0 or sys.platform != "linux"
    monkeypatch.setattr(memory.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 10}[name])
    assert memory.free(tmp_path / "none", tmp_path / "none") == 40960
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.free(tmp_path / "none", tmp_path / "none") is None


SPAWNED = """
import multiprocessing, sys, torch
from pathlib import Path
from undiffuse.data import Dataset, Augment
from undiffuse.data.feed import Feed
from undiffuse.data.pictures import Pictures

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    some = Pictures(sorted(Path(sys.argv[1]).rglob("*.*")), (7, 9), 3)
    feeds = [Feed(Dataset("x", samples), lambda x: x, Augment([]), 7, 3, torch.device("cpu"), decoders=1)
             for samples in (some, some[:])]
    assert all(torch.equal(*(feed.batch(step)[0] for feed in feeds)) for step in range(5))
"""


@pytest.mark.slow
def test_workers_that_are_spawned_as_on_macos_and_windows(photos, tmp_path):
    (tmp_path / "script.py").write_text(SPAWNED)
    command = [sys.executable, str(tmp_path / "script.py"), str(photos)]
    subprocess.run(command, check=True, timeout=120)
