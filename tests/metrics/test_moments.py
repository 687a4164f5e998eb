"""However a set is cut, its moments are those of the whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from seeing import normal
from undiffuse.errors import InputError
from undiffuse.metrics import Moments, moments

FEATURES = normal(211, 9, centre=1000.0) * torch.linspace(0.1, 2, 9)
MEAN, COVARIANCE = FEATURES.double().mean(0), FEATURES.double().T.cov()


def same(found: Moments, rtol: float = 1e-9) -> None:
    assert found.n == len(FEATURES)
    torch.testing.assert_close(found.mean, MEAN, rtol=rtol, atol=0)
    largest = float(COVARIANCE.abs().max())
    torch.testing.assert_close(found.covariance, COVARIANCE, rtol=rtol, atol=rtol * largest)
    torch.testing.assert_close(found.scatter, COVARIANCE * 210, rtol=rtol, atol=rtol * largest * 210)


@pytest.mark.parametrize("size", [1, 2, 50, 211])
@pytest.mark.parametrize("blocks", [(512, 1024), (4, 16)], ids=["one block", "many blocks"])
def test_any_cut_gives_the_moments_of_the_whole(monkeypatch, size, blocks):
    monkeypatch.setattr(moments, "COLUMNS", blocks[0])
    monkeypatch.setattr(moments, "ROWS", blocks[1])
    found = Moments.empty(9)
    for batch in FEATURES.split(size):
        found.update(batch)
    same(found)
    same(Moments.of(FEATURES))


def test_parts_merge_in_any_order_and_with_nothing():
    parts = [Moments.of(part) for part in FEATURES.split([3, 100, 1, 107])]
    whole, copy = Moments.empty(9), parts[0].copy()
    for part in (parts[2], parts[0], Moments.empty(9), parts[3], parts[1]):
        whole.merge(part)
    same(whole)
    assert parts[0].n == copy.n == 3 and torch.equal(parts[0].lower, copy.lower)  # the parts are as they were
    copy.merge(parts[1])
    assert parts[0].n == 3


WORKER = """
import sys
import torch
import torch.distributed as processes
from undiffuse.metrics import Moments

rank, file = int(sys.argv[1]), sys.argv[2]
processes.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
features = torch.load(f"{file}.features", weights_only=True)
own = Moments.of(features[rank::2])
tensors = [torch.tensor([float(own.n)]).double(), own.mean, own.lower]
gathered = [[torch.empty_like(t) for _ in range(2)] for t in tensors]
for into, tensor in zip(gathered, tensors, strict=True):
    processes.all_gather(into, tensor)
whole = Moments.empty(9)
for n, mean, lower in zip(*gathered, strict=True):
    whole.merge(Moments(int(n), mean, lower))
whole.save(f"{file}.{rank}.npz")
processes.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_look_at_a_part_each_know_the_whole(tmp_path: Path):
    file = tmp_path / "meeting"
    torch.save(FEATURES, f"{file}.features")
    commands = [[sys.executable, "-c", WORKER, str(rank), str(file)] for rank in range(2)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in running] == [0, 0]
    for rank in range(2):
        same(Moments.load(f"{file}.{rank}.npz"))


def test_files_go_there_and_back_with_and_without_a_number(tmp_path):
    path = tmp_path / "moments.npz"
    Moments.of(FEATURES).save(path)
    same(Moments.load(path))
    with np.load(path) as file:
        assert sorted(file) == ["mu", "n", "sigma"]
        np.savez(path, mu=file["mu"], sigma=file["sigma"])
    shared = Moments.load(path)
    assert shared.n is None
    torch.testing.assert_close(shared.covariance, COVARIANCE, rtol=1e-9, atol=1e-9)
    shared.save(path)
    assert Moments.load(path).n is None
    for attempt in (
        lambda: shared.update(FEATURES),
        lambda: Moments.of(FEATURES).merge(shared),
        lambda: shared.scatter,
    ):
        with pytest.raises(InputError, match="do not say of how many"):
            attempt()


def test_another_ending_is_refused_and_never_replaced(tmp_path):
    for name in ("moments.v2", "moments", "moments.npy"):
        with pytest.raises(InputError, match=r"written as \.npz, not as .*moments"):
            Moments.of(FEATURES).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_moments(tmp_path):
    path = tmp_path / "bad.npz"
    bad = {
        "mu \\(d,\\) and sigma": {"mu": MEAN.numpy()},
        "not \\(9,\\) and \\(8, 8\\)": {"mu": MEAN.numpy(), "sigma": np.eye(8)},
        "NaN": {"mu": MEAN.numpy() * np.nan, "sigma": np.eye(9)},
        "not symmetric": {"mu": MEAN.numpy(), "sigma": np.triu(np.ones((9, 9)))},
        "variances >= 0": {"mu": MEAN.numpy(), "sigma": -np.eye(9)},
        "it is of 1 samples": {"mu": MEAN.numpy(), "sigma": np.eye(9), "n": 1},
        "is no .npz": {"mu": np.array(["a", None], dtype=object), "sigma": np.eye(9)},
    }
    for message, arrays in bad.items():
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=message):
            Moments.load(path)
    Moments.of(FEATURES).save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npz"):
            Moments.load(path)
    with pytest.raises(InputError, match="cannot read"):
        Moments.load(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.full((3, 9), torch.nan), "finite"),
        (torch.zeros(3, 8), "9 and 8"),
        (torch.zeros(9), r"\(N, d\)"),
        (torch.zeros(3, 9, dtype=torch.int64), "int64"),
    ],
)
def test_what_cannot_be_taken_in_changes_nothing(features, message):
    found = Moments.of(FEATURES)
    with pytest.raises(InputError, match=message):
        found.update(features)
    same(found)
    with pytest.raises(InputError, match="2 samples"):
        Moments.of(FEATURES[:1]).covariance
