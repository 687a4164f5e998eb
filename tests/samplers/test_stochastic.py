"""Samplers that draw noise, on Gaussian data, where a run is a linear recursion and its law is known exactly."""

import math

import pytest
import torch
from torch.testing import assert_close

from undiffuse.exact import Gaussian, Mixture
from undiffuse.samplers import DDIM, DDPM, EulerMaruyama, grid, sample
from undiffuse.samplers.ddpm import transition
from undiffuse.schedule import EDM, Cosine, Flow, Linear, SubVariancePreserving, VariancePreserving

MEAN, VARIANCE = 0.7, 0.36


def gaussian(schedule):
    return Gaussian(schedule, torch.tensor([MEAN]).double(), torch.tensor([[VARIANCE]]).double())


def marginal(schedule, t):
    """Mean and variance of x_t."""
    return schedule.alpha(t) * MEAN, schedule.alpha(t) ** 2 * VARIANCE + schedule.sigma(t) ** 2


def law(sampler, schedule, times):
    """Mean and variance at times[-1] of a run from the exact marginal at times[0]: each step is linear in x and z."""
    rows = sampler.coefficients(schedule, times[:, None])[..., 0].tolist()
    means, variances = marginal(schedule, times)
    gains = schedule.alpha(times) * VARIANCE / variances  # x0_hat = MEAN + gain (x - alpha MEAN)
    mean, variance = float(means[0]), float(variances[0])
    for at, gain, (c_x, c_x0, c_z) in zip(means.tolist(), gains.tolist(), rows, strict=False):
        mean = c_x * mean + c_x0 * (MEAN + gain * (mean - at))
        variance = (c_x + c_x0 * gain) ** 2 * variance + c_z**2
    return mean, variance


@pytest.mark.parametrize(
    "schedule",
    [Cosine(), VariancePreserving(), SubVariancePreserving(), EDM(), Flow(), Linear(10000, 1e-5, 0.002)],
    ids=lambda s: type(s).__name__,
)
def test_the_moments_converge_at_weak_order_one(any_stochastic, schedule):
    errors = []
    for steps in (200, 400):
        times = schedule.time(torch.linspace(-4, 4, steps + 1, dtype=torch.float64))
        pairs = zip(law(any_stochastic, schedule, times), marginal(schedule, times[-1]), strict=True)
        errors.append([abs(found - true) for found, true in pairs])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < coarse * 2**-0.85 + 1e-12, errors
    assert max(errors[1]) < 0.02 * marginal(schedule, times[-1])[1]


def test_runs_have_the_law_of_their_recursion(any_stochastic):
    schedule, count = Cosine(), 4000
    denoiser = gaussian(schedule)
    denoiser.t_max = 0.9
    times = grid.named("log-snr", schedule, 20, denoiser.t_min, 0.9)
    start = denoiser.prior(range(count), (1,), torch.float64) + schedule.alpha(0.9) * MEAN
    samples = sample(denoiser, any_stochastic, start, times, seeds=range(count))
    mean, variance = law(any_stochastic, schedule, times)
    assert abs(float(samples.mean()) - mean) < 5 * math.sqrt(variance / count)
    assert abs(float(samples.var()) - variance) < 5 * variance * math.sqrt(2 / count)


def test_the_transition_has_the_variance_that_the_marginals_leave(any_schedule):
    t, s = torch.tensor([0.5037, 0.9037, 0.3037]).double(), torch.tensor([0.2037, 0.9, 0.0]).double()
    alpha_ts, var_ts = transition(any_schedule, t, s)
    assert_close(alpha_ts, any_schedule.alpha(t) / any_schedule.alpha(s))
    expected = any_schedule.sigma(t) ** 2 - alpha_ts**2 * any_schedule.sigma(s) ** 2
    assert_close(var_ts, expected, rtol=1e-8, atol=1e-10)


def test_the_transition_of_neighbours_in_a_table_is_beta():
    table, i = Linear(), torch.arange(0, 1001).double() / 1000
    assert_close(transition(table, i[1:], i[:-1])[1], torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_ddpm_draws_from_the_posterior(any_schedule):
    """Bayes: q(x_s | x_t, x_0) from q(x_s | x_0) q(x_t | x_s), in precisions."""
    t, s = torch.tensor([0.5037, 0.9037]).double(), torch.tensor([0.2037, 0.7037]).double()
    alpha_ts, var_ts = transition(any_schedule, t, s)
    precision = alpha_ts**2 / var_ts + 1 / any_schedule.sigma(s) ** 2
    of_x, of_x0 = alpha_ts / var_ts / precision, any_schedule.alpha(s) / any_schedule.sigma(s) ** 2 / precision
    for variance, expected in (("beta-tilde", 1 / precision), ("beta", var_ts)):
        rows = DDPM(variance).rows(any_schedule, torch.stack([t, s]))[0]
        assert_close(rows, torch.stack([of_x, of_x0, expected.sqrt()]), rtol=1e-8, atol=1e-10)


def test_ddim_with_eta_one_is_ancestral_sampling(any_schedule):
    times = torch.tensor([0.9037, 0.7, 0.4037, 0.2, 0.0]).double()[:, None]
    ddim, ddpm = DDIM(eta=1.0).coefficients(any_schedule, times), DDPM("beta-tilde").coefficients(any_schedule, times)
    assert_close(ddim, ddpm, rtol=1e-8, atol=1e-10)


def test_ddim_with_eta_one_and_ddpm_give_the_same_samples():
    denoiser = Mixture(Cosine(), torch.ones(2), torch.tensor([[-1.0, 0], [1, 1]]), 0.1 * torch.eye(2).expand(2, 2, 2))
    times, x = grid.named("uniform", Cosine(), 12, denoiser.t_min, 1.0), denoiser.prior(range(8), (2,))
    both = [sample(denoiser, sampler, x, times, seeds=range(8)) for sampler in (DDIM(eta=1.0), DDPM())]
    assert_close(*both, rtol=1e-4, atol=1e-4)


def test_ddim_keeps_the_variance_of_the_noise_whatever_eta(any_schedule):
    """Given x_0, a step takes N(alpha_t x_0, sigma_t^2) to N(alpha_s x_0, sigma_s^2)."""
    t, s = torch.tensor([0.5037, 0.9037]).double(), torch.tensor([0.2037, 0.7037]).double()
    for eta in (0.0, 0.3, 1.0):
        c_x, c_x0, c_z = DDIM(eta).rows(any_schedule, torch.stack([t, s]))[0]
        assert_close(c_x * any_schedule.alpha(t) + c_x0, any_schedule.alpha(s))
        assert_close(c_x**2 * any_schedule.sigma(t) ** 2 + c_z**2, any_schedule.sigma(s) ** 2)
        assert (c_z > 0).all() == (eta > 0)


def test_samples_of_a_correlated_gaussian_have_its_mean_and_covariance(any_stochastic):
    """Against the truth itself, in two dimensions, on a grid fine enough that the steps' own error is small."""
    mean, covariance = torch.tensor([0.6, -0.4]).double(), torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double()
    denoiser, count = Gaussian(VariancePreserving(), mean, covariance), 4000
    times = grid.named("log-snr", denoiser.schedule, 250, denoiser.t_min, 1.0)
    if isinstance(any_stochastic, EulerMaruyama):  # in the schedule's own time, where its steps are even
        times = grid.named("quadratic", denoiser.schedule, 250, denoiser.t_min, 1.0)
    x = denoiser.prior(range(count), (2,), torch.float64)
    x = sample(denoiser, any_stochastic, x, times, range(count))
    standard_error = (covariance.diagonal() / count).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * standard_error + 0.02).all()
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance**2
    assert ((torch.cov(x.T) - covariance).abs() < 5 * (spread / count).sqrt() + 0.02).all()
