import pytest
import torch
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics import memorisation, nearest, neighbours


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, 4, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("blocks", [(1024, 8192), (7, 11)], ids=["one block", "many blocks"])
def test_brute_force_agrees(monkeypatch, k, blocks):
    monkeypatch.setattr(neighbours, "QUERIES", blocks[0])
    monkeypatch.setattr(neighbours, "REFERENCES", blocks[1])
    query, reference = images(20), images(50, seed=1)
    differences = query.flatten(1)[:, None].double() - reference.flatten(1)[None].double()
    expected = differences.square().mean(2).sqrt().sort(1)
    distances, rows = nearest(query, reference, k)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances.double(), expected.values[:, :k], rtol=1e-6, atol=0)
    assert torch.equal(rows, expected.indices[:, :k])


def test_the_distance_is_per_pixel_and_in_grey_levels():
    grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    assert nearest(grey, grey + 7)[0].item() == 7


def test_a_copy_is_at_zero_even_far_from_the_origin():
    reference = 1000 + 1e-3 * torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    distances, rows = nearest(reference, reference)
    assert torch.equal(distances, torch.zeros(300, 1))
    assert torch.equal(rows[:, 0], torch.arange(300))


def test_memorisation_tells_copies_from_new_images():
    train, held_out = images(200), images(60, seed=1)
    fresh = memorisation(images(60, seed=2), train, held_out)
    assert fresh["ratio"] == pytest.approx(1, abs=0.05)
    assert (fresh["samples_n"], fresh["train_n"], fresh["held_out_n"]) == (60, 200, 60)
    assert memorisation(train[:60], train, held_out)["ratio"] == 0
    few_copies = memorisation(torch.cat([train[:10], images(50, seed=2)]), train, held_out)
    assert few_copies["ratio"] > 0.9
    assert few_copies["suspicious_share"] >= 10 / 60


def test_refusals():
    with pytest.raises(InputError, match="copies"):
        memorisation(images(4), images(9), images(9))
    with pytest.raises(InputError, match="alike"):
        nearest(images(2), images(2)[..., 1:])
    with pytest.raises(InputError, match="alike"):
        nearest(images(0), images(2))
    with pytest.raises(InputError, match="one scale"):
        nearest(images(2).float(), images(2))
    with pytest.raises(InputError, match=r"\[1, 2\]"):
        nearest(images(2), images(2), k=3)
    with pytest.raises(InputError, match="finite"):
        nearest(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
