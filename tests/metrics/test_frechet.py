import pytest
import scipy.linalg
import torch
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics import frechet_distance


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
