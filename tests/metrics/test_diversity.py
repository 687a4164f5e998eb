import math
import sys

import pytest
import torch

from seeing import normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import pairwise_distance
from undiffuse.metrics.diversity import measure_diversity, measure_duplication


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


def test_doubles_are_seen():
    real, fresh = seen(normal(300, 8)), normal(300, 8, 1)
    assert measure_duplication(seen(fresh), real)[0].value < 0.04
    doubled = torch.cat([fresh[:200], fresh[:50] + 1e-4, fresh[:50]])
    assert measure_duplication(seen(doubled), real)[0].value == pytest.approx(150 / 300, abs=0.03)
    few = measure_duplication(seen(fresh[:100]), real)[0]  # as many real ones as samples set the threshold
    assert (few.n, few.reference_n) == (100, 100) and few.value < 0.06
