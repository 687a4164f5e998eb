"""Posterior sampling against the exact posterior, which for Gaussian data is Gaussian."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from measuring import MEASUREMENTS, SHAPE, SIZE, matrix
from undiffuse import Denoiser, InputError
from undiffuse.exact import Gaussian, solve
from undiffuse.guidance import Masked, Posterior
from undiffuse.prediction import PREDICTIONS
from undiffuse.schedule import Cosine, Flow

generator = torch.Generator().manual_seed(5)
MEAN = torch.randn(SIZE, dtype=torch.float64, generator=generator)
STD = 0.6
ONE = torch.eye(SIZE, dtype=torch.float64)
TRUTH = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
X = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
T = torch.tensor([0.05, 0.5, 0.95])
COVARIANCES = ("network", "isotropic")


def measured(measure, noise_std):
    """y of each truth, with noise."""
    y = measure(TRUTH)
    return y + noise_std * torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def exact_posterior(schedule, measure, y, noise_std):
    """The denoiser of p(x_0 | y) for data N(MEAN, STD^2), by the textbook's formula; y (M,)."""
    a = matrix(measure)
    gain = STD**2 * a.T @ torch.linalg.pinv(STD**2 * a @ a.T + noise_std**2 * torch.eye(len(a), dtype=torch.float64))
    return Gaussian(schedule, MEAN + gain @ (y - a @ MEAN), STD**2 * (ONE - gain @ a))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("noise_std", [0.0, 0.4])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_on_isotropic_data_the_estimate_is_that_of_the_posterior(name, noise_std, covariance):
    measure = MEASUREMENTS[name]
    y = measured(measure, noise_std)
    for schedule in (Cosine(), Flow()):
        plain = Gaussian(schedule, MEAN, STD**2 * ONE.diagonal())
        with torch.no_grad():
            guided = Posterior(plain, measure, y, noise_std, covariance=covariance, iterations=60)(X, T)
        for i in range(3):
            expected = exact_posterior(schedule, measure, y[i].flatten(), noise_std)(X[i : i + 1], T[i])
            assert_close(guided.x0[i], expected.x0[0], rtol=1e-9, atol=1e-9)
            assert_close(guided.score[i], expected.score[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_its_ode_leads_to_the_posterior(covariance):
    """Each start goes where the posterior's own flow takes it, so means and covariances are right too."""
    schedule, measure = Cosine(), MEASUREMENTS["downsampled"]
    y, start, end = measured(measure, 0.2)[:1], 0.98, 0.01
    plain = Gaussian(schedule, MEAN, STD**2 * ONE.diagonal())
    guided = Posterior(plain, measure, y, 0.2, covariance=covariance)
    expected = exact_posterior(schedule, measure, y[0].flatten(), 0.2).transport(X[:2], start, end)
    assert_close(solve(guided, X[:2], start, end, 1e-9), expected, rtol=1e-6, atol=1e-6)


def test_through_the_network_what_was_not_measured_follows_what_was():
    """On correlated data: score + J^T A^T (noise_std^2 + v A A^T)^-1 (y - A x0_hat), of the exact J."""
    schedule, measure, noise_std = Cosine(), MEASUREMENTS["masked"], 0.3
    root = 0.3 * torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    c, a, y = root @ root.T, matrix(measure), measured(measure, noise_std)
    plain = Gaussian(schedule, MEAN, c)
    alpha, sigma = schedule.scales(schedule.log_snr(T))
    variance = c.diagonal().mean()
    v = sigma**2 * variance / (sigma**2 + alpha**2 * variance)
    guided = Posterior(plain, measure, y, noise_std, scale=0.7)(X, T)
    for i in range(3):
        jacobian = alpha[i] * c @ torch.linalg.inv(alpha[i] ** 2 * c + sigma[i] ** 2 * ONE)
        missing = y[i].flatten() - a @ plain(X, T).x0[i].flatten()
        spread = noise_std**2 * torch.eye(len(a), dtype=torch.float64) + v[i] * a @ a.T
        pull = jacobian.T @ a.T @ torch.linalg.solve(spread, missing)
        assert_close(guided.score[i].flatten(), plain(X, T).score[i].flatten() + 0.7 * pull, rtol=1e-9, atol=1e-9)
    near = Posterior(plain, measure, y, noise_std, covariance="isotropic")(X, T).x0 - plain(X, T).x0
    assert bool((near.flatten(1)[:, a.sum(0) == 0] == 0).all())


def test_without_noise_the_isotropic_estimate_is_measured_as_y():
    for name in ("masked", "downsampled"):
        measure = MEASUREMENTS[name]
        plain = Gaussian(Cosine(), MEAN, torch.linspace(0.1, 2, SIZE, dtype=torch.float64))
        estimate = Posterior(plain, measure, measured(measure, 0.0), covariance="isotropic")(X, T)
        assert_close(measure(estimate.x0), measure(TRUTH), rtol=1e-10, atol=1e-10)


def test_where_alpha_is_0():
    """The isotropic estimate is the mean given y alone; through the network nothing is learned."""
    schedule, measure, times = Flow(), MEASUREMENTS["own"], torch.tensor([1.0, 0.5, 1.0])
    plain, y = Gaussian(schedule, MEAN, STD**2 * ONE.diagonal()), measured(measure, 0.2)
    isotropic = Posterior(plain, measure, y, 0.2, covariance="isotropic")(X, times)
    for i in range(3):
        expected = exact_posterior(schedule, measure, y[i], 0.2)(X[i : i + 1], times[i])
        assert_close(isotropic.x0[i], expected.x0[0], rtol=1e-9, atol=1e-9)
    network = Posterior(plain, measure, y, 0.2, covariance="network")(X, times)
    assert torch.equal(network.x0[::2], plain(X, times).x0[::2])
    assert_close(network.x0[1], isotropic.x0[1], rtol=1e-9, atol=1e-9)


class Toy(nn.Module):
    """Elementwise, so that results can be compared bit for bit between batches."""

    def forward(self, x, c_noise):
        return torch.tanh(0.8 * x + c_noise[:, None, None, None] / 1000)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_at_scale_0_the_estimate_is_the_plain_one_bit_for_bit(predicts, covariance):
    plain, x = Denoiser(Toy(), Cosine(), predicts), X.float()
    y = torch.full((3, *SHAPE), 3.0)
    guided = Posterior(plain, MEASUREMENTS["masked"], y, 0.1, scale=0.0, covariance=covariance).both(x, T)
    assert all(torch.equal(each.output, plain(x, T).output) for each in guided)
    some = Posterior(plain, MEASUREMENTS["masked"], y, 0.1, torch.tensor([0.0, 1.0, 0.0]), covariance=covariance)
    assert torch.equal(some(x, T).x0[::2], plain(x, T).x0[::2]) and not torch.equal(some(x, T).x0, plain(x, T).x0)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_alone_are_as_in_their_batch(covariance):
    """Each with a mask, a measurement, noise, a scale and a time of its own."""
    x, masks = X.float(), torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    noise, scale = torch.tensor([0.0, 0.1, 0.5]), torch.tensor([1.0, 0.5, 2.0])
    plain = Denoiser(Toy(), Cosine(), "v")
    guided = Posterior(plain, Masked(masks), TRUTH.float(), noise, scale, covariance=covariance)
    chosen = torch.tensor([2, 0])
    with torch.no_grad():
        whole = guided(x, T)
        assert torch.equal(guided.rows(chosen)(x[chosen], T[chosen]).x0, whole.x0[chosen])
        for i in range(3):
            own = Masked(masks[i]), TRUTH[i : i + 1].float(), float(noise[i]), float(scale[i])
            alone = Posterior(plain, *own, covariance=covariance)(x[i : i + 1], T[i])
            assert_close(alone.x0[0], whole.x0[i], rtol=1e-6, atol=1e-6)
    assert not whole.x0.requires_grad


def test_one_measurement_serves_all_samples():
    plain, measure = Gaussian(Cosine(), MEAN, ONE.diagonal()), MEASUREMENTS["gaussian blur"]
    y = measured(measure, 0.1)[:1]
    one, each = (Posterior(plain, measure, given, 0.1) for given in (y, y.expand(3, -1, -1, -1)))
    assert torch.equal(one(X, T).x0, each(X, T).x0)
    assert torch.equal(one.rows(torch.tensor([1]))(X[1:2], T[1]).x0[0], one(X, T).x0[1])


def test_what_cannot_be_is_refused():
    plain, measure = Gaussian(Cosine(), MEAN, ONE.diagonal()), MEASUREMENTS["downsampled"]
    y = measure(TRUTH)
    for noise_std in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="noise_std must be finite and 0 or above"):
            Posterior(plain, measure, y, noise_std)
    with pytest.raises(InputError, match="scale must be finite, not nan"):
        Posterior(plain, measure, y, scale=float("nan"))
    with pytest.raises(InputError, match="data_std must be finite and above 0, not 0"):
        Posterior(plain, measure, y, data_std=0.0)
    with pytest.raises(InputError, match="iterations must be 1 or more, not 0"):
        Posterior(plain, measure, y, iterations=0)
    with pytest.raises(InputError, match="y must be finite"):
        Posterior(plain, measure, y / 0)
    for wrong in (TRUTH, y[:2], y[0]):
        with pytest.raises(InputError, match=r"what is measured of these samples is \(3, 2, 2, 2\)"):
            Posterior(plain, measure, wrong)(X, T)


def test_an_unknown_covariance_is_refused(unchecked):
    plain, measure = Gaussian(Cosine(), MEAN, ONE.diagonal()), MEASUREMENTS["downsampled"]
    with pytest.raises(InputError, match="network or isotropic, not 'diagonal'"):
        Posterior(plain, measure, measure(TRUTH), covariance="diagonal")
