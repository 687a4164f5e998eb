"""Kernels and posteriors by Bayes' rule, and the discretised Gaussian by sums and by scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.testing import assert_close

from undiffuse.schedule import Cosine
from undiffuse.transition import discretised_gaussian_log_prob, gaussian_log_prob, posterior, transition

T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
S = torch.tensor([0.1, 0.45, 0.2], dtype=torch.float64)


def test_kernels_compose_and_the_posterior_is_bayes_rule(any_schedule):
    alpha, sigma, alpha_s, sigma_s = (
        v.detach() for t in (T, S) for v in (any_schedule.alpha(t), any_schedule.sigma(t))
    )
    alpha_ts, var_ts = (v.detach() for v in transition(any_schedule, T, S))
    assert_close(alpha_ts * alpha_s, alpha)
    assert_close(alpha_ts**2 * sigma_s**2 + var_ts, sigma**2)
    # precisions add: of x_s given x_0, and of x_t given x_s
    variance = 1 / (1 / sigma_s**2 + alpha_ts**2 / var_ts)
    found = posterior(any_schedule, T, S)
    assert_close(found.variance.detach(), variance)
    assert_close(found.of_x.detach(), variance * alpha_ts / var_ts)
    assert_close(found.of_x0.detach(), variance * alpha_s / sigma_s**2)


@pytest.mark.parametrize("std", [1e-3, 0.004, 0.1, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -0.999, 0.2, 0.97, 2.0])
def test_the_probabilities_of_all_values_add_up_to_one(mean, std):
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_std = torch.tensor(math.log(std), dtype=torch.float64)
    log_prob = discretised_gaussian_log_prob(values, torch.tensor(mean).double().expand(256), log_std)
    assert_close(log_prob.exp().sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    expected = np.diff(norm.cdf(edges, float(torch.tensor(mean)), std))
    assert_close(log_prob.exp(), torch.from_numpy(expected), rtol=1e-6, atol=1e-14)


def test_far_from_the_mean_the_probability_has_a_finite_logarithm_and_slope():
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([-1.0, -0.2, 0.2, 1.0], dtype=dtype)
        mean = torch.tensor([1.5, 1.0, -1.0, -1.5], dtype=dtype, requires_grad=True)
        log_std = torch.tensor(-7.0, dtype=dtype, requires_grad=True)
        log_prob = discretised_gaussian_log_prob(x, mean, log_std)
        assert log_prob.isfinite().all() and (log_prob < -1e4).all()
        slopes = torch.autograd.grad(log_prob.sum(), (mean, log_std))
        assert all(slope.isfinite().all() for slope in slopes)
        assert ((slopes[0] > 0) == (x > mean)).all()


def test_narrow_bins_have_the_density_times_their_width():
    x, mean, log_std = torch.tensor([0.2]).double(), torch.tensor([-0.3]).double(), torch.tensor(-0.5).double()
    density = gaussian_log_prob(x, mean, log_std)
    assert_close(density, torch.from_numpy(norm.logpdf([0.2], -0.3, math.exp(-0.5))), rtol=1e-6, atol=1e-6)
    assert_close(
        discretised_gaussian_log_prob(x, mean, log_std, 10001), density + math.log(2 / 10000), rtol=1e-6, atol=0
    )


def test_the_schedules_ratio_is_that_of_beta_to_beta_tilde():
    ratio = transition(Cosine(), T, S)[1] / posterior(Cosine(), T, S).variance
    assert_close(ratio, (Cosine().sigma(T) / Cosine().sigma(S)) ** 2)
