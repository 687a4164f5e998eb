"""Precision, recall, density and coverage: closed cases, and every pair looked at in turn."""

import sys

import pytest
import torch
from torch import Tensor

from seeing import seen
from undiffuse.errors import InputError
from undiffuse.metrics import density_coverage, precision_recall, wilson_interval
from undiffuse.metrics.precision_recall import measure_precision_recall, neighbourhoods

FILE = "undiffuse.metrics.precision_recall"  # the function of the same name stands before it


def cloud(n: int, seed: int, centre: float = 0.0, d: int = 4) -> Tensor:
    return centre + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_pairs(real: Tensor, generated: Tensor, k: int) -> tuple[float, float]:
    """The definition, one pair after the other."""

    def share(features: list[Tensor], of: list[Tensor]) -> float:
        radii = [
            sorted(float((a - b).double().norm()) for j, b in enumerate(of) if j != i)[k - 1] for i, a in enumerate(of)
        ]
        inside = [any(float((f - c).double().norm()) <= r for c, r in zip(of, radii, strict=True)) for f in features]
        return sum(inside) / len(inside)

    pairs = (list(generated.double()), list(real.double())), (list(real.double()), list(generated.double()))
    return share(*pairs[0]), share(*pairs[1])


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("block", [2048, 5], ids=["one block", "many blocks"])
def test_every_pair_looked_at_in_turn_agrees(monkeypatch, k, block):
    monkeypatch.setattr(sys.modules[FILE], "BLOCK", block)
    real, generated = cloud(23, 0), 0.7 * cloud(18, 1) + 0.4
    found = precision_recall(real, generated, k)
    expected = by_pairs(real, generated, k)
    assert (found["precision"], found["recall"]) == pytest.approx(expected)
    assert expected[0] != expected[1] and (found["k"], found["n"], found["real_n"]) == (k, 18, 23)
    swapped = precision_recall(generated, real, k)
    assert (swapped["recall"], swapped["precision"]) == (found["precision"], found["recall"])


def test_a_set_against_itself_and_against_one_far_away():
    real = cloud(50, 0)
    same, far = precision_recall(real, real), precision_recall(real, real + 1000)
    assert (same["precision"], same["recall"], far["precision"], far["recall"]) == (1, 1, 0, 0)


def test_copies_have_balls_of_no_size():
    """Four copies of one point: the third nearest other is at 0, and the ball holds the point alone."""
    point, other = torch.zeros(4, 2), cloud(6, 0, 5.0, 2)
    found = precision_recall(torch.cat([point, other]), torch.cat([point, point[:1] + 1e-9, other + 1000]), k=3)
    assert found["precision"] == pytest.approx(4 / 11)


def test_a_kind_of_sample_that_is_missing_lowers_recall_and_not_precision():
    real = torch.cat([cloud(100, 0, -20), cloud(100, 1, 20)])
    both, one = torch.cat([cloud(100, 2, -20), cloud(100, 3, 20)]), torch.cat([cloud(100, 2, -20), cloud(100, 4, -20)])
    whole, dropped = precision_recall(real, both), precision_recall(real, one)
    assert whole["recall"] > 0.8 and abs(dropped["recall"] - whole["recall"] / 2) < 0.1 and dropped["recall"] <= 0.5
    assert dropped["precision"] == pytest.approx(whole["precision"], abs=0.1) and whole["precision"] > 0.8


def test_bad_samples_lower_precision_and_not_recall():
    real = cloud(200, 0)
    bad = torch.cat([cloud(100, 1), cloud(100, 2, 50.0)])
    found = precision_recall(real, bad)
    assert found["precision"] <= 0.5 and found["recall"] > 0.7


def test_scale_does_not_matter():
    real, generated = cloud(40, 0), cloud(40, 1, 0.5)
    assert precision_recall(real, generated) == precision_recall(8 * real + 3, 8 * generated + 3)


def test_refusals():
    for real, generated, k, message in (
        (cloud(5, 0), cloud(5, 0, d=3), 3, r"\(5, 4\) and \(5, 3\)"),
        (cloud(5, 0), cloud(4, 0), 4, r"k must lie in \[1, 3\], .* not 4"),
        (cloud(5, 0), cloud(5, 0), 0, r"not 0"),
        (cloud(5, 0), cloud(5, 0) / 0, 3, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            precision_recall(real, generated, k)


def density_by_pairs(real: Tensor, generated: Tensor, k: int) -> tuple[float, float]:
    """The definitions, one pair after the other."""
    radii = [
        sorted(float((a - b).double().norm()) for j, b in enumerate(real) if j != i)[k - 1] for i, a in enumerate(real)
    ]
    inside = [
        [float((g - r).double().norm()) <= radius for r, radius in zip(real, radii, strict=True)] for g in generated
    ]
    density = sum(sum(row) for row in inside) / (k * len(generated))
    return density, sum(any(row[i] for row in inside) for i in range(len(real))) / len(real)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("block", [2048, 5], ids=["one block", "many blocks"])
def test_density_and_coverage_by_every_pair(monkeypatch, k, block):
    monkeypatch.setattr(sys.modules[FILE], "BLOCK", block)
    real, generated = cloud(23, 0), 0.7 * cloud(18, 1) + 0.4
    found = density_coverage(real, generated, k)
    assert (found["density"], found["coverage"]) == pytest.approx(density_by_pairs(real, generated, k))
    both = neighbourhoods(real, generated, 3, k)
    assert float(both.in_real.double().mean()) == precision_recall(real, generated)["precision"]
    assert float(both.balls.double().mean()) / k == found["density"]


def test_samples_of_the_real_law_have_the_density_and_coverage_of_the_paper():
    found = density_coverage(cloud(1500, 0), cloud(1500, 1), 5)
    assert found["density"] == pytest.approx(1, abs=0.06)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


def test_one_outlier_among_real_ones_fools_precision_and_not_density():
    real = torch.cat([cloud(200, 0), torch.full((1, 4), 100.0)])
    far = cloud(100, 1, 30.0)
    assert precision_recall(real, far)["precision"] == 1
    assert density_coverage(real, far)["density"] <= 0.2 + 1e-9  # in one ball, of k = 5


@pytest.mark.parametrize("block", [2048, 7], ids=["one block", "many blocks"])
def test_copies_of_everything_are_settled_from_the_differences(monkeypatch, block):
    """Far from the origin, with more near doubles than candidates: products alone cannot tell them apart."""
    monkeypatch.setattr(sys.modules[FILE], "BLOCK", block)
    base = cloud(3, 0, 100.0).double()
    close = torch.cat([base + 1e-9 * cloud(3, i).double() for i in range(1, 13)])
    generated = torch.cat([close[:20], close[5:9], cloud(6, 50, 100.0).double()])
    for k in (1, 3, 6):
        found, dense = precision_recall(close, generated, k), density_coverage(close, generated, k)
        assert (found["precision"], found["recall"]) == pytest.approx(by_pairs(close, generated, k))
        assert (dense["density"], dense["coverage"]) == pytest.approx(density_by_pairs(close, generated, k))


def test_four_measurements_with_their_errors():
    real, samples = seen(cloud(80, 0)), seen(cloud(60, 1, 0.5))
    found = {one.metric: one for one in measure_precision_recall(samples, real)}
    whole, dense = precision_recall(real.features, samples.features), density_coverage(real.features, samples.features)
    for name, value in {**whole, **dense}.items():
        if name in found:
            assert found[name].value == value and found[name].interval[0] <= value <= found[name].interval[1]
            assert (found[name].n, found[name].reference_n) == (60, 80)
    assert len(found) == 4 and found["precision"].interval == wilson_interval(round(60 * whole["precision"]), 60)
    assert (found["recall"].settings["k"], found["density"].settings["k"]) == (3, 5)
