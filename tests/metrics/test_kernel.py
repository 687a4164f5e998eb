"""The kernel distance: its definition, pair by pair, and its error, over repeats."""

import math
import sys

import pytest
import torch
from torch import Tensor

from seeing import normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import kernel_distance
from undiffuse.metrics.kernel import measure_kernel_distance


def by_pairs(a: Tensor, b: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    within = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize("block", [2048, 5], ids=["one block", "many blocks"])
def test_every_pair_in_turn_agrees(monkeypatch, block):
    monkeypatch.setattr(sys.modules["undiffuse.metrics.kernel"], "BLOCK", block)
    a, b = normal(17, 6), normal(12, 6, 1, centre=0.3)
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(by_pairs(a, b), rel=1e-10)
    assert kernel_distance(b, a) == pytest.approx((value, error))
    assert error > 0


def test_blocks_change_nothing_in_the_error(monkeypatch):
    a, b = normal(17, 6), normal(12, 6, 1, centre=0.3)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(sys.modules["undiffuse.metrics.kernel"], "BLOCK", 4)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("centre", [0.0, 1.0], ids=["one law", "two laws"])
def test_the_error_is_its_formula_written_out_in_matrices(centre):
    """9 and 7 samples, where the second order is large."""
    a, b = normal(9, 4, centre=centre).double(), normal(7, 4, 1).double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (torch.einsum("id,jd->ij", x, y) / 4 + 1) ** 3

    def centred(k: Tensor, pairs: Tensor) -> float:
        rows, columns, mean = ((k * pairs).sum(i) / pairs.sum(i) for i in (1, 0, (0, 1)))
        return float(
            (k.square() * pairs).sum() / pairs.sum() - rows.square().mean() - columns.square().mean() + mean**2
        )

    sets = kernel(a, a), kernel(b, b), kernel(a, b)
    others = 1 - torch.eye(9).double(), 1 - torch.eye(7).double(), torch.ones(9, 7).double()
    second_a, second_b, second_ab = (centred(k, pairs) for k, pairs in zip(sets, others, strict=True))
    h_a = (sets[0] * others[0]).sum(1) / 8 - sets[2].mean(1)
    h_b = (sets[1] * others[1]).sum(1) / 6 - sets[2].mean(0)
    second = 2 * second_a / (9 * 8) + 2 * second_b / (7 * 6) + 4 * second_ab / (9 * 7)
    first = 4 * float(h_a.var()) / 9 + 4 * float(h_b.var()) / 7
    assert kernel_distance(a, b)[1] == pytest.approx(math.sqrt(max(first - second, second)), rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d", "centre"), [(100, 100, 8, 0.0), (120, 60, 8, 0.5), (60, 90, 32, 0.1)])
def test_no_bias_and_the_error_is_the_spread_over_repeats(n, m, d, centre):
    found = [kernel_distance(normal(n, d, 2 * i, centre=centre), normal(m, d, 2 * i + 1)) for i in range(250)]
    values, errors = torch.tensor(found).T
    truth = mean_of_cube(d, centre, centre) + mean_of_cube(d, 0, 0) - 2 * mean_of_cube(d, centre, 0)
    spread = float(values.std())
    assert abs(float(values.mean()) - truth) < 4 * spread / 250**0.5
    assert 0.8 < float(errors.square().mean().sqrt()) / spread < 1.25


def mean_of_cube(d: int, a: float, b: float) -> float:
    """E (x.y / d + 1)^3 of independent x ~ N(a 1, I) and y ~ N(b 1, I) in d dimensions, by moments of s = x.y."""
    # s = sum_i x_i y_i, of independent terms with these moments
    one = a * b
    two = (1 + a * a) * (1 + b * b)
    three = (a**3 + 3 * a) * (b**3 + 3 * b)
    first = d * one
    second = d * two + d * (d - 1) * one**2
    third = d * three + 3 * d * (d - 1) * two * one + d * (d - 1) * (d - 2) * one**3
    return third / d**3 + 3 * second / d**2 + 3 * first / d + 1


def test_a_measurement_of_both_sizes():
    found = measure_kernel_distance(seen(normal(30, 4), inception=True), seen(normal(20, 4, 1), inception=True))[0]
    assert (found.label, found.n, found.reference_n, found.error_by) == ("KID", 30, 20, "U-statistic")


def test_refusals():
    for a, b, message in (
        (normal(1, 4), normal(5, 4), "N >= 2"),
        (normal(5, 4), normal(5, 3), "4 and 3"),
        (normal(5, 4), normal(5, 4) / 0, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            kernel_distance(a, b)
