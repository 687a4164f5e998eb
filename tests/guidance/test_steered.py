"""Guidance by a function of x_0: closed forms on Gaussian data, where x0_hat is linear in x_t."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from measuring import MEASUREMENTS, SHAPE, SIZE, matrix
from undiffuse import Denoiser, InputError
from undiffuse.denoiser import Estimate
from undiffuse.exact import Gaussian
from undiffuse.guidance import ClassifierFree, Misfit, Steered
from undiffuse.guidance.estimates import moved, tilted
from undiffuse.prediction import PREDICTIONS, Level, named
from undiffuse.schedule import Cosine, Flow

generator = torch.Generator().manual_seed(3)
MEAN = 0.3 * torch.randn(SIZE, dtype=torch.float64, generator=generator)
ROOT = 0.3 * torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
COVARIANCE = ROOT @ ROOT.T
X = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
C = torch.randn(1, *SHAPE, dtype=torch.float64, generator=generator)
T = torch.tensor([0.2, 0.5, 0.9])
SCALES = torch.tensor([0.5, -1.0, 3.0])


def jacobians(schedule):
    """d x0_hat / d x_t = alpha C (alpha^2 C + sigma^2)^-1, symmetric, (B, 32, 32)."""
    alpha, sigma = (v[:, None, None] for v in schedule.scales(schedule.log_snr(T)))
    one = torch.eye(SIZE, dtype=torch.float64)
    return alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * one)


def half_square(x0):
    return 0.5 * (x0 - C).square().flatten(1).sum(1)


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=repr)
def test_a_quadratic_distance_has_its_gradient_in_closed_form(schedule):
    exact = Gaussian(schedule, MEAN, COVARIANCE)
    plain = exact(X, T)
    gradient = torch.einsum("bxy,by->bx", jacobians(schedule), (plain.x0 - C).flatten(1)).reshape(X.shape)
    scales = SCALES.double()[:, None, None, None]
    with torch.no_grad():
        without, guided = Steered(exact, half_square, SCALES).both(X, T)
    sigma = schedule.sigma(T)[:, None, None, None]
    assert torch.equal(without.x0, plain.x0)
    assert_close(guided.noise, plain.noise + sigma * scales * gradient, rtol=1e-9, atol=1e-9)
    assert_close(guided.score, plain.score - scales * gradient, rtol=1e-9, atol=1e-9)
    assert not guided.x0.requires_grad and not without.x0.requires_grad


def test_a_misfit_pulls_along_what_was_measured():
    schedule, measure = Cosine(), MEASUREMENTS["own"]
    exact, a, y = Gaussian(schedule, MEAN, COVARIANCE), matrix(MEASUREMENTS["own"]), measure(C)
    missing = measure(exact(X, T).x0) - y
    unit = missing / missing.norm(dim=1, keepdim=True)
    gradient = torch.einsum("bxy,by->bx", jacobians(schedule), unit @ a).reshape(X.shape)
    guided = Steered(exact, Misfit(measure, y), 2.0)(X, T)
    assert_close(guided.score, exact(X, T).score - 2 * gradient, rtol=1e-9, atol=1e-9)


class Toy(nn.Module):
    """Elementwise, so that results can be compared bit for bit between batches."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8), requires_grad=False)

    def forward(self, x, c_noise):
        return torch.tanh(self.weight * x + c_noise[:, None, None, None] / 1000)


def test_at_scale_0_the_estimate_is_the_plain_one_and_the_distance_is_not_asked():
    plain = Denoiser(Toy(), Cosine(), "v")
    x = X.float()

    def never(x0):
        raise AssertionError

    without, guided = Steered(plain, never, torch.zeros(3)).both(x, T)
    assert torch.equal(guided.output, plain(x, T).output) and torch.equal(without.output, guided.output)
    some = Steered(plain, half_square, torch.tensor([0.0, 1.0, 0.0]))(x, T)
    assert torch.equal(some.x0[::2], plain(x, T).x0[::2]) and not torch.equal(some.x0[1], plain(x, T).x0[1])


def test_samples_alone_are_as_in_their_batch():
    y = MEASUREMENTS["downsampled"](X.float() + 1)
    guided = Steered(Denoiser(Toy(), Cosine(), "v"), Misfit(MEASUREMENTS["downsampled"], y), SCALES)
    chosen = torch.tensor([2, 0])
    with torch.no_grad():
        assert torch.equal(guided.rows(chosen)(X.float()[chosen], T[chosen]).x0, guided(X.float(), T).x0[chosen])


@pytest.mark.parametrize("name", PREDICTIONS)
def test_an_estimate_is_tilted_and_moved_whatever_it_says(name):
    schedule, prediction = Cosine(), named(name)
    level = Level(schedule, T.double())
    output, change, fraction = (torch.randn(X.shape, dtype=torch.float64, generator=generator) for _ in range(3))
    estimate = Estimate(X, output, level, prediction.target, fraction)
    alpha, sigma, scale = (v[:, None, None, None] for v in (level.alpha, level.sigma, SCALES.double()))
    up = tilted(estimate, change, SCALES.double())
    assert_close(up.score, estimate.score + scale * change)
    assert_close(up.noise, estimate.noise - sigma * scale * change)
    assert_close(up.x0, estimate.x0 + sigma**2 / alpha * scale * change)
    further = moved(estimate, change)
    assert_close(further.x0, estimate.x0 + change)
    for new in (up, further):
        assert_close(alpha * new.x0 + sigma * new.noise, X)
        assert new.target == prediction.target and new.variance_fraction is fraction


def test_where_alpha_is_0_nothing_is_tilted():
    level = Level(Flow(), torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64))
    estimate = Estimate.of_x0(X, C.expand_as(X), level)
    up = tilted(estimate, X, torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(up.x0[1:], estimate.x0[1:]) and not torch.equal(up.x0[0], estimate.x0[0])


def test_what_is_no_distance_is_refused():
    exact = Gaussian(Cosine(), MEAN, COVARIANCE)
    with pytest.raises(InputError, match="scale must be finite, not inf"):
        Steered(exact, half_square, float("inf"))
    with pytest.raises(InputError, match=r"each of 3 samples, not \(3, 2, 4, 4\)"):
        Steered(exact, lambda x0: x0.square(), 1.0)(X, T)
    with pytest.raises(InputError, match="without a gradient"):
        Steered(exact, lambda x0: half_square(x0.detach()), 1.0)(X, T)
    with pytest.raises(InputError, match="belongs outside ClassifierFree"):
        ClassifierFree(Steered(exact, half_square, 1.0), 2.0)
