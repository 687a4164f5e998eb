import pytest
import torch
from torch import Tensor

from seeing import normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import memorisation, nearest, nearest_other, neighbours
from undiffuse.metrics.neighbours import measure_memorisation


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


def test_suspicious_is_nearer_than_the_nearest_hundredth_of_what_is_held_out():
    """Held-out ones at 1, 2, ... 101 from the only training sample: a hundredth is nearer than 2."""
    train, held_out = torch.zeros(1, 1), torch.arange(1.0, 102)[:, None]
    samples = torch.tensor([[1.9], [2.1], [1.9], [3.0], [5.0]])
    assert memorisation(samples, train, held_out)["suspicious_share"] == pytest.approx(2 / 5)


def test_the_ratio_has_an_interval_that_repeats_fall_into():
    def clouds(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        return normal(80, 3, 3 * seed), normal(300, 3, 1000), normal(80, 3, 3 * seed + 1)

    found = [memorisation(*clouds(seed)) for seed in range(60)]
    spread = torch.tensor([one["ratio"] for one in found]).std()
    assert 0.7 < torch.tensor([one["ratio_error"] for one in found]).mean() / spread < 1.4
    inside = [one["ratio_interval"][0] <= 1 <= one["ratio_interval"][1] for one in found]
    assert sum(inside) >= 0.85 * 60  # samples and held-out ones are of one law, so the ratio of their medians is 1


def test_the_nearest_other_leaves_out_the_row_and_not_its_copies():
    rows = torch.tensor([[0.0], [3.0], [4.0], [4.0], [4.0]])
    assert nearest_other(rows).tolist() == [3, 1, 0, 0, 0]


def test_memorisation_in_features_is_that_of_the_plain_function():
    samples, held_out, train = seen(normal(40, 3)), seen(normal(50, 3, 1)), seen(normal(200, 3, 2))
    ratio, share = measure_memorisation(samples, held_out, train)
    plain = memorisation(samples.features, train.features, held_out.features)
    assert (ratio.value, share.value) == (plain["ratio"], plain["suspicious_share"])
    assert ratio.interval == plain["ratio_interval"] and ratio.settings["train_n"] == 200
    assert measure_memorisation(train, held_out, train)[0].value == 0


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
