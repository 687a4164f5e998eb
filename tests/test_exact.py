"""The closed-form denoisers against each other, autograd and numerical integration: the truth of other tests."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from undiffuse import InputError
from undiffuse.exact import FiniteData, Gaussian, Mixture, solve
from undiffuse.schedule import EDM, Cosine, Flow, Linear, SubVariancePreserving

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0], [0.7, 0.5, 0], [-0.3, 0.2, 0.1]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
TIMES = torch.tensor([0.05, 0.2, 0.37, 0.5, 0.8, 0.95], dtype=torch.float64)
X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mixture(schedule):
    singular = torch.diag(torch.tensor([0.0, 0.3, 0.0]).double())
    return Mixture(
        schedule,
        torch.tensor([0.2, 0.5, 0.3]),
        torch.stack([MEAN, -MEAN, 0 * MEAN]),
        torch.stack([COVARIANCE, 0.2 * COVARIANCE.flip(0, 1), singular]),
    )


def test_the_gaussian_is_linear_regression(any_schedule):
    denoiser = Gaussian(any_schedule, MEAN, COVARIANCE)
    estimate = denoiser(X, TIMES)
    for i, t in enumerate(TIMES):
        alpha, sigma = any_schedule.alpha(t), any_schedule.sigma(t)
        total = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
        expected = MEAN + alpha * COVARIANCE @ torch.linalg.solve(total, X[i] - alpha * MEAN)
        assert_close(estimate.x0[i], expected, rtol=1e-8, atol=1e-8)
        log_prob = MultivariateNormal(alpha * MEAN, total).log_prob(X[i])
        assert_close(denoiser.log_prob(X, TIMES)[i], log_prob, rtol=1e-8, atol=1e-8)
    assert_close(denoiser.log_prob(X), MultivariateNormal(MEAN, COVARIANCE).log_prob(X))


def test_a_mixture_of_equal_components_is_a_gaussian(any_schedule):
    gaussian = Gaussian(any_schedule, MEAN, COVARIANCE)
    same = Mixture(any_schedule, torch.tensor([1.0, 3.0]), MEAN.expand(2, 3), COVARIANCE.expand(2, 3, 3))
    assert_close(same(X, TIMES).x0, gaussian(X, TIMES).x0)
    assert_close(same.log_prob(X, TIMES), gaussian.log_prob(X, TIMES))
    assert math.isclose(same.data_std, gaussian.data_std)
    assert math.isclose(gaussian.data_std, math.sqrt(float(COVARIANCE.diagonal().mean())))


def test_diagonal_covariances_need_no_matrices(any_schedule):
    weights, means = torch.tensor([0.2, 0.8]), torch.stack([MEAN, -MEAN])
    variances = torch.tensor([[0.3, 1.0, 0.0], [2.0, 0.1, 0.5]]).double()
    short, full = (Mixture(any_schedule, weights, means, c) for c in (variances, torch.diag_embed(variances)))
    assert_close(short(X, TIMES).x0, full(X, TIMES).x0)
    assert_close(short.log_prob(X, TIMES), full.log_prob(X, TIMES))
    assert short.data_std == full.data_std
    spread = short.draw(20000, torch.Generator().manual_seed(0)).var(0)
    assert_close(spread, full.draw(20000, torch.Generator().manual_seed(1)).var(0), rtol=0.05, atol=0)
    one, same = Gaussian(any_schedule, MEAN, variances[1]), Gaussian(any_schedule, MEAN, torch.diag(variances[1]))
    assert_close(one.transport(X, TIMES, 1 - TIMES), same.transport(X, TIMES, 1 - TIMES))


def test_the_score_is_the_gradient_of_log_prob(any_schedule):
    points = torch.stack([MEAN, -MEAN, X[0]])
    for denoiser in (mixture(any_schedule), FiniteData(any_schedule, points)):
        x = (any_schedule.sigma(TIMES)[:, None] * X + any_schedule.alpha(TIMES)[:, None] * 0.3 * MEAN).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_prob(x, TIMES).sum(), x)
        assert_close(denoiser(x, TIMES).score, gradient, rtol=1e-6, atol=1e-8)


def test_finite_data_is_a_mixture_without_width():
    points = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    finite = FiniteData(Cosine(), points)
    narrow = Mixture(Cosine(), torch.ones(7), points.flatten(1), torch.zeros(7, 6, 6))
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    assert_close(finite(x, TIMES).x0, narrow(x, TIMES).x0, rtol=1e-7, atol=1e-7)
    assert_close(finite.log_prob(x, TIMES), narrow.log_prob(x, TIMES), rtol=1e-7, atol=1e-7)
    assert math.isclose(finite.data_std, narrow.data_std, rel_tol=1e-9)
    near = finite.schedule.alpha(1e-3) * points[4:5]
    assert_close(finite(near, 1e-3).x0, points[4:5])


@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [Cosine(), EDM(2.0), Flow()], ids=repr)
def test_densities_integrate_to_one(schedule, t):
    grid = torch.linspace(-20, 20, 20001, dtype=torch.float64)[:, None]
    wide, centres = torch.tensor([[[0.3]], [[1.2]]]), torch.tensor([[-2.0], [1.0]])
    for denoiser, mean in (
        (Mixture(schedule, torch.tensor([0.4, 0.6]), centres, wide), -0.2),
        (FiniteData(schedule, centres), -0.5),
    ):
        density = denoiser.log_prob(grid, t).exp()
        assert math.isclose(float(torch.trapezoid(density, grid[:, 0])), 1, rel_tol=1e-6)
        first = float(torch.trapezoid(density * grid[:, 0], grid[:, 0]))
        assert math.isclose(first, float(schedule.alpha(t)) * mean, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), EDM(), Flow(), SubVariancePreserving()], ids=repr)
def test_transport_solves_the_probability_flow(schedule):
    denoiser, h = Gaussian(schedule, MEAN, COVARIANCE), 1e-5
    t = TIMES + 0.00037  # off the kinks of the table
    slope = (denoiser.transport(X, t, t + h) - denoiser.transport(X, t, t - h)) / (2 * h)
    assert_close(denoiser(X, t).flow, slope, rtol=1e-5, atol=1e-5)
    # there and back
    assert_close(denoiser.transport(denoiser.transport(X, t, 1 - t), 1 - t, t), X)


@pytest.mark.parametrize("schedule", [Flow(), EDM()], ids=repr)
def test_transport_equals_the_numerical_solution(schedule):
    denoiser = Gaussian(schedule, MEAN, COVARIANCE)
    x = schedule.sigma(0.9) * X
    levels = [0.5, 0.1, 0.01]
    solved = solve(denoiser, x, 0.9, levels)
    for level, found in zip(levels, solved, strict=True):
        assert_close(found, denoiser.transport(x, 0.9, level), rtol=1e-7, atol=1e-8)
    assert_close(solve(denoiser, solved[-1], 0.01, 0.9), x, rtol=1e-6, atol=1e-6)


def test_draws_have_the_moments_of_the_data():
    draws = mixture(Cosine()).draw(20000, torch.Generator().manual_seed(0))
    assert_close(draws.mean(0), 0.2 * MEAN - 0.5 * MEAN, rtol=0, atol=0.08)
    spread = draws.sub(draws.mean(0)).square().mean().sqrt()
    assert math.isclose(float(spread), mixture(Cosine()).data_std, rel_tol=0.02)


def test_what_is_not_a_covariance_is_refused():
    with pytest.raises(InputError, match="positive semi-definite"):
        Gaussian(Cosine(), torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InputError, match="positive semi-definite"):
        Gaussian(Cosine(), torch.zeros(2), torch.tensor([1.0, -1.0]))
