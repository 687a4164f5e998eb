"""Posterior sampling against the exact posterior, which for Gaussian data is Gaussian."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from measuring import HOLE, MEASUREMENTS, SHAPE, SIZE, matrix
from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label
from undiffuse.exact import Gaussian, solve
from undiffuse.guidance import ClassifierFree, Masked, Posterior
from undiffuse.prediction import PREDICTIONS
from undiffuse.schedule import Cosine, Flow

generator = torch.Generator().manual_seed(5)
MEAN = torch.randn(SIZE, dtype=torch.float64, generator=generator)
STD = 0.6
ONE = torch.eye(SIZE, dtype=torch.float64)
TRUTH = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
X = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
T = torch.tensor([0.05, 0.5, 0.95])
ROOT = 0.3 * torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
CORRELATED = ROOT @ ROOT.T + 0.01 * ONE
COVARIANCES = ("network", "isotropic")


def measured(measure, noise_std):
    """y of each truth, with noise."""
    y = measure(TRUTH)
    return y + noise_std * torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def exact_posterior(schedule, measure, y, noise_std, c=STD**2 * ONE):
    """The denoiser of p(x_0 | y) for data N(MEAN, c), by the textbook's formula; y (M,)."""
    a = matrix(measure)
    gain = c @ a.T @ torch.linalg.pinv(a @ c @ a.T + noise_std**2 * torch.eye(len(a), dtype=torch.float64))
    return Gaussian(schedule, MEAN + gain @ (y - a @ MEAN), c - gain @ a @ c)


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
    assert_close(solve(guided, X[:2], start, end, 1e-8), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise_std", [0.01, 0.3])
@pytest.mark.parametrize("name", ["own", "masked", "downsampled", "gaussian blur"])
def test_on_correlated_data_the_network_knows_the_posterior(name, noise_std):
    """Exact for any Gaussian, with as many directions as numbers are measured; more do no harm."""
    measure, schedule = MEASUREMENTS[name], Cosine()
    y, plain = measured(measure, noise_std), Gaussian(schedule, MEAN, CORRELATED)
    directions = int(torch.linalg.matrix_rank(matrix(measure))) + 5
    guided = Posterior(plain, measure, y, noise_std, directions=directions, iterations=40)(X, T)
    for i in range(3):
        expected = exact_posterior(schedule, measure, y[i].flatten(), noise_std, CORRELATED)(X[i : i + 1], T[i])
        assert_close(guided.x0[i], expected.x0[0], rtol=1e-7, atol=1e-7)


def test_more_directions_make_it_more_probable():
    """The misfit and the distance from x0_hat, as the exact covariance weighs them, fall to their least."""
    measure, schedule, noise_std = MEASUREMENTS["gaussian blur"], Cosine(), 0.1
    y, plain, a = measured(measure, noise_std)[1:2], Gaussian(schedule, MEAN, CORRELATED), matrix(measure)
    alpha, sigma = schedule.scales(schedule.log_snr(T[1]))
    inverse = torch.linalg.inv(CORRELATED) + alpha**2 / sigma**2 * ONE

    def cost(directions):
        without, guided = Posterior(plain, measure, y, noise_std, directions=directions).both(X[1:2], T[1])
        change = (guided.x0 - without.x0).flatten()
        misfit = a @ guided.x0.flatten() - y.flatten()
        return float(misfit.square().sum() / noise_std**2 + change @ inverse @ change)

    costs = [cost(directions) for directions in (1, 2, 3, 6, 32)]
    assert all(after < before for before, after in pairwise(costs))


def test_what_was_not_measured_follows_through_the_network_alone():
    measure, unseen = MEASUREMENTS["masked"], ~HOLE.expand(3, *SHAPE)
    plain = Gaussian(Cosine(), MEAN, CORRELATED)
    for covariance, follows in (("network", True), ("isotropic", False)):
        without, guided = Posterior(plain, measure, TRUTH, covariance=covariance).both(X, T)
        assert bool((guided.x0[unseen] != without.x0[unseen]).all()) == follows
        assert bool((guided.x0[unseen] == without.x0[unseen]).all()) != follows


def test_a_standard_deviation_of_its_own_changes_the_answer_and_not_the_prior():
    schedule, measure, one = Cosine(), MEASUREMENTS["downsampled"], ONE.diagonal()
    y, plain = measured(measure, 0.2), Gaussian(schedule, MEAN, one)
    own = Posterior(plain, measure, y, 0.2, covariance="isotropic", data_std=STD)
    sigma, alpha = schedule.sigma(T), schedule.alpha(T)
    v = (sigma**2 * STD**2 / (sigma**2 + alpha**2 * STD**2))[:, None, None, None]
    expected = v / (v / 4 + 0.2**2) * (y - measure(plain(X, T).x0)) / 4  # A A^T = 1/4, A^T repeats a quarter
    repeated = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(own(X, T).x0, plain(X, T).x0 + repeated, rtol=1e-9, atol=1e-9)
    assert torch.equal(own.prior([0], SHAPE), plain.prior([0], SHAPE))


def test_without_noise_the_isotropic_estimate_is_measured_as_y():
    for name in ("masked", "downsampled"):
        measure = MEASUREMENTS[name]
        plain = Gaussian(Cosine(), MEAN, torch.linspace(0.1, 2, SIZE, dtype=torch.float64))
        estimate = Posterior(plain, measure, measured(measure, 0.0), covariance="isotropic")(X, T)
        assert_close(measure(estimate.x0), measure(TRUTH), rtol=1e-10, atol=1e-10)


def test_where_alpha_is_0():
    """The mean given y alone, for both: J = 0 there says nothing of the covariance."""
    schedule, measure, times = Flow(), MEASUREMENTS["own"], torch.tensor([1.0, 0.5, 1.0])
    plain, y = Gaussian(schedule, MEAN, STD**2 * ONE.diagonal()), measured(measure, 0.2)
    for covariance in COVARIANCES:
        estimate = Posterior(plain, measure, y, 0.2, covariance=covariance)(X, times)
        for i in range(3):
            expected = exact_posterior(schedule, measure, y[i], 0.2)(X[i : i + 1], times[i])
            assert_close(estimate.x0[i], expected.x0[0], rtol=1e-9, atol=1e-9)


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


class Labelled(nn.Module):
    def forward(self, x, c_noise, vector):
        return torch.tanh(x + vector[:, :2, None, None])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_it_goes_around_classifier_free_guidance_and_under_a_condition(covariance):
    torch.manual_seed(0)
    plain, x = Denoiser(Labelled(), Cosine(), "v", conditioner=Conditioner({"label": Label(3, 2)})), X.float()
    measure, labels = MEASUREMENTS["downsampled"], torch.tensor([0, 2, 1])

    def guided(inside):
        return Posterior(inside, measure, measure(TRUTH).float(), 0.1, covariance=covariance).given(label=labels)(x, T)

    with torch.no_grad():
        alone, at_one, at_three = guided(plain), guided(ClassifierFree(plain, 1.0)), guided(ClassifierFree(plain, 3.0))
    assert_close(at_one.x0, alone.x0, rtol=1e-5, atol=1e-5)
    assert float((at_three.x0 - alone.x0).abs().max()) > 0.01


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
    for counts in ({"iterations": 0}, {"directions": 0}):
        with pytest.raises(InputError, match="iterations and directions must be 1 or more, not"):
            Posterior(plain, measure, y, **counts)
    with pytest.raises(InputError, match="y must be finite"):
        Posterior(plain, measure, y / 0)
    for wrong in (TRUTH, y[:2], y[0]):
        with pytest.raises(InputError, match=r"measured of these samples is \(3, 2, 2, 2\)|2 values of y for 3"):
            Posterior(plain, measure, wrong)(X, T)


def test_an_unknown_covariance_is_refused(unchecked):
    plain, measure = Gaussian(Cosine(), MEAN, ONE.diagonal()), MEASUREMENTS["downsampled"]
    with pytest.raises(InputError, match="network or isotropic, not 'diagonal'"):
        Posterior(plain, measure, measure(TRUTH), covariance="diagonal")
