import sys
from dataclasses import replace

import pytest
import scipy.linalg
import torch
from torch import Tensor

from seeing import normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import Moments, Seen, frechet_distance
from undiffuse.metrics.frechet import Fit, measure_frechet_distance


def features(mean: Tensor, covariance: Tensor, n: int = 50, seed: int = 0) -> Tensor:
    """n rows whose sample mean and unbiased covariance are exactly the ones given."""
    d = len(mean)
    draws = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    white = torch.linalg.qr(draws - draws.mean(0)).Q * (n - 1) ** 0.5
    values, vectors = torch.linalg.eigh(covariance)
    return mean + white @ (vectors * values.clamp(min=0).sqrt()).T


def covariance(d: int, seed: int, rank: int | None = None) -> Tensor:
    factor = torch.randn(d, rank or d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T


def formula(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    root = torch.from_numpy(scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real)
    return ((mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace()).item()


def test_one_dimension_is_the_distance_of_means_and_deviations():
    a = features(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    b = features(torch.tensor([-2.0]).double(), torch.tensor([[25.0]]).double())
    assert frechet_distance(a, b) == pytest.approx(3**2 + (5 - 2) ** 2, rel=1e-12)


@pytest.mark.parametrize("d", [2, 7, 20])
def test_covariances_that_do_not_commute(d):
    mean_a, mean_b = torch.linspace(-1, 1, d).double(), torch.linspace(0, 3, d).double()
    cov_a, cov_b = covariance(d, 1), covariance(d, 2)
    assert not torch.allclose(cov_a @ cov_b, cov_b @ cov_a)
    measured = frechet_distance(features(mean_a, cov_a), features(mean_b, cov_b, n=80, seed=3))
    assert measured == pytest.approx(formula(mean_a, cov_a, mean_b, cov_b), rel=1e-7)


def test_singular_covariances_on_one_axis_and_across():
    zero = torch.zeros(3).double()
    x, y = torch.diag(torch.tensor([4.0, 0, 0])).double(), torch.diag(torch.tensor([0, 9.0, 0])).double()
    assert frechet_distance(features(zero, x), features(zero, 4 * x)) == pytest.approx((4 - 2) ** 2, rel=1e-12)
    assert frechet_distance(features(zero, x), features(zero, y)) == pytest.approx(4 + 9, rel=1e-12)


def test_fewer_rows_than_features():
    a, b = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cov_a, cov_b = a.T.cov(), b.T.cov()
    root_a = (lambda values, vectors: (vectors * values.clamp(min=0).sqrt()) @ vectors.T)(*torch.linalg.eigh(cov_a))
    trace = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("rank", [2, 9])
def test_zero_against_itself_symmetric_and_blind_to_rotation(rank):
    zero = torch.zeros(9).double()
    a, b = features(zero, covariance(9, 1, rank)), features(zero + 0.5, covariance(9, 2, rank), seed=4)
    rotation = torch.linalg.qr(covariance(9, 5)).Q
    distance = frechet_distance(a, b)
    assert distance > 0.1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-10)


def test_float32_far_from_the_origin_keeps_its_digits():
    a = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a + 1000, a + 1000.5) == pytest.approx(8 * 0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "N >= 2"),
        (torch.zeros(5), torch.zeros(5, 3), "N >= 2"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "2 and 3"),
        (torch.full((5, 3), torch.nan), torch.zeros(5, 3), "finite"),
        (torch.zeros(5, 3), torch.full((5, 3), torch.inf), "finite"),
    ],
)
def test_refusals(a, b, message):
    with pytest.raises(InputError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize(("n", "d", "columns"), [(50, 7, 512), (90, 20, 6), (5, 40, 512)])
def test_moments_give_what_features_give(monkeypatch, n, d, columns):
    monkeypatch.setattr(sys.modules["undiffuse.metrics.frechet"], "COLUMNS", columns)
    mean, zero = torch.linspace(0, 1, d).double(), torch.zeros(d).double()
    a, b = features(zero, covariance(d, 1), n=3 * d), normal(n, d, 5).double() @ covariance(d, 2) + mean
    exact = frechet_distance(a, b)
    for sides in ((Moments.of(a), Moments.of(b)), (a, Moments.of(b)), (Moments.of(b), Moments.of(a))):
        assert frechet_distance(*sides) == pytest.approx(exact, rel=1e-7)
    itself = Moments.of(b)
    assert frechet_distance(itself, itself) == pytest.approx(0, abs=1e-7 * float(itself.covariance.trace()))


def of_gaussians(n: int, m: int, d: int, shift: float, seed: int) -> tuple[Seen, Seen]:
    mix = torch.linspace(0.5, 2, d) * torch.linalg.qr(normal(d, d, 99)).Q
    return seen(normal(n, d, 2 * seed) @ mix + shift), seen(normal(m, d, 2 * seed + 1))


@pytest.mark.parametrize(("n", "m", "d", "shift"), [(150, 150, 3, 0.5), (200, 100, 6, 0.0), (60, 60, 40, 0.2)])
def test_the_error_is_the_spread_over_repeats(n, m, d, shift):
    found = [measure_frechet_distance(*of_gaussians(n, m, d, shift, seed))[0] for seed in range(120)]
    spread = torch.tensor([one.value for one in found]).std()
    errors = torch.tensor([one.error for one in found])
    assert 0.8 < float(errors.square().mean().sqrt() / spread) < 1.25  # 120 repeats know a spread to 6 %


def test_a_reference_without_features_counts_as_fixed_and_samples_without_them_have_no_error():
    samples, real = of_gaussians(100, 80, 4, 0.3, 0)
    both = measure_frechet_distance(samples, real)[0]
    fixed = measure_frechet_distance(samples, replace(real, features=None))[0]
    bare = measure_frechet_distance(replace(samples, features=None), real)[0]
    exact = frechet_distance(samples.features, real.features)
    assert [both.value, fixed.value, bare.value] == pytest.approx(3 * [exact])
    assert fixed.error < both.error and fixed.error_by.endswith("the reference held fixed")
    assert bare.error is None and bare.interval is None and "not kept" in bare.error_by
    assert (both.metric, both.n, both.reference_n) == ("frechet-distance", 100, 80)
    assert measure_frechet_distance(replace(samples, is_inception=True), real)[0].label == "FID"


@pytest.mark.parametrize("side", [0, 1], ids=["samples", "reference"])
def test_the_influence_is_the_slope_towards_one_sample_more(side):
    sides = of_gaussians(200, 150, 5, 0.3, 1)
    fit = Fit(sides[0].moments, sides[1].moments)
    features = sides[side].features.double()
    influence = (fit.of_samples, fit.of_reference)[side](features)

    def slope(row: int, weight: float = 1e-6) -> float:
        """Of the distance, from the law p to (1 - weight) p + weight at a row."""
        moved = [seen.moments.copy() for seen in sides]
        x = features[row] - moved[side].mean
        moved[side].mean = moved[side].mean + weight * x
        moved[side].lower = (1 - weight) * moved[side].lower + weight * (len(features) - 1) * torch.outer(x, x)
        return (frechet_distance(*moved) - fit.distance) / weight

    for row in (0, 1, 2):
        # between two rows, for the influence has a mean of 0 and the slope has one of order 1 / n
        assert slope(row) - slope(7) == pytest.approx(float(influence[row] - influence[7]), rel=1e-3)
