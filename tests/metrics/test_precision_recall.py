"""Precision and recall: closed cases, and every pair looked at in turn."""

import sys

import pytest
import torch
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics import precision_recall

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
