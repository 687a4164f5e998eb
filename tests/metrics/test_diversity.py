import math
import sys

import pytest
import torch

from seeing import normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import pairwise_distance
from undiffuse.metrics.diversity import draw_distances, measure_diversity, measure_draw_diversity, measure_duplication


@pytest.mark.parametrize("block", [1024, 4], ids=["one block", "many blocks"])
def test_every_pair_in_turn_agrees(monkeypatch, block):
    monkeypatch.setattr(sys.modules["undiffuse.metrics.diversity"], "BLOCK", block)
    x = normal(13, 5).double()
    pairs = [float((x[i] - x[j]).norm()) for i in range(13) for j in range(13) if i != j]
    assert pairwise_distance(x)[0] == pytest.approx(sum(pairs) / len(pairs))


def test_gaussians_in_closed_form_and_the_spread_over_repeats():
    """x - x' is N(0, 2 s^2 I): the mean of its length is 2 s Gamma((d + 1) / 2) / Gamma(d / 2)."""
    d, scale = 3, 1.5
    found = torch.tensor([pairwise_distance(normal(80, d, seed, scale)) for seed in range(200)], dtype=torch.float64)
    truth = 2 * scale * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    assert abs(float(found[:, 0].mean()) - truth) < 4 * float(found[:, 0].std()) / 200**0.5
    assert 0.85 < float(found[:, 1].mean() / found[:, 0].std()) < 1.2


def test_samples_of_a_condition_beside_real_ones():
    """Two classes far apart: only the distances within them count."""
    labels = torch.arange(200) % 2
    apart = 100.0 * labels[:, None]
    ours, real = measure_diversity(seen(normal(200, 4) / 2 + apart, labels), seen(normal(200, 4, 1) + apart, labels))
    assert (ours.metric, real.metric) == ("diversity", "real-diversity")
    assert ours.value / real.value == pytest.approx(0.5, abs=0.03)
    assert real.value < 4 and real.error < 0.2 and ours.settings["within"] == "classes"
    whole, _ = measure_diversity(seen(normal(200, 4) / 2 + apart), seen(normal(200, 4, 1) + apart))
    assert whole.value > 90 and whole.settings["within"] == "the set"
    with pytest.raises(InputError, match="there is none"):
        measure_diversity(seen(normal(4, 2), torch.zeros(4).long()), seen(normal(4, 2), torch.ones(4).long()))


def test_draws_of_one_condition_pair_by_pair():
    """Greys 10, 20 and 40 differ by 10, 20 and 30; copies by nothing."""
    greys = torch.tensor([[10, 20, 40], [7, 7, 7]]).byte()
    draws = greys[:, :, None, None, None].expand(-1, -1, 3, 4, 5)
    assert draw_distances(draws).tolist() == [20, 0]
    found = measure_draw_diversity(draws)
    assert (found.metric, found.value, found.n, found.settings) == ("draw-diversity", 10, 2, {"draws": 3})
    assert found.error == pytest.approx(math.sqrt(200) / math.sqrt(2))
    half = torch.zeros(1, 2, 1, 2, 2).byte()
    half[0, 0, 0, 0] = 100  # on half of the pixels: a root of a mean square, not a mean
    assert draw_distances(half).item() == pytest.approx(100 / math.sqrt(2))


def test_noise_of_a_known_spread():
    """Of independent greys of variance s^2 the distance is sqrt(2) s, in any number of draws."""
    noise = torch.randint(0, 256, (20, 5, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    found = measure_draw_diversity(noise)
    assert found.value == pytest.approx(math.sqrt((256**2 - 1) / 6), rel=0.01) and found.error < 1


@pytest.mark.parametrize("shape", [(4, 1, 1, 2, 2), (4, 2, 2, 2), (0, 2, 1, 2, 2)])
def test_draws_are_several_pictures_of_a_condition(shape):
    with pytest.raises(InputError, match=r"uint8 \(N, D, C, H, W\) with D >= 2"):
        draw_distances(torch.zeros(shape, dtype=torch.uint8))


def test_doubles_are_seen():
    real, fresh = seen(normal(300, 8)), normal(300, 8, 1)
    assert measure_duplication(seen(fresh), real)[0].value < 0.04
    doubled = torch.cat([fresh[:200], fresh[:50] + 1e-4, fresh[:50]])
    assert measure_duplication(seen(doubled), real)[0].value == pytest.approx(150 / 300, abs=0.03)
    few = measure_duplication(seen(fresh[:100]), real)[0]  # as many real ones as samples set the threshold
    assert (few.n, few.reference_n) == (100, 100) and few.value < 0.06
