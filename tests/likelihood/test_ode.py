"""The likelihood by the ODE against closed forms: its divergence, its error, and that any sampler walks it."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.denoiser import Estimate, Wrapper
from undiffuse.exact import Gaussian, Mixture
from undiffuse.guidance import ClassifierFree, Masked, Posterior
from undiffuse.likelihood import levels_up, log_prob
from undiffuse.networks import MLP
from undiffuse.prediction import PREDICTIONS, v_of
from undiffuse.samplers import DDPM, Adaptive, Heun
from undiffuse.schedule import Cosine, Flow, VariancePreserving

FINE = Adaptive(rtol=3e-5, atol=3e-5)


def mixture(schedule, dimensions, spread=0.5):
    """Three Gaussians of full covariance, of mean 0 together, so that the prior fits."""
    generator = torch.Generator().manual_seed(dimensions)
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    means = spread * torch.randn(3, dimensions, generator=generator, dtype=torch.float64)
    roots = torch.randn(3, dimensions, dimensions, generator=generator, dtype=torch.float64) / math.sqrt(dimensions)
    covariances = 0.3 * roots @ roots.mT + 0.05 * torch.eye(dimensions).double()
    return Mixture(schedule, weights, means - weights @ means, covariances)


def truth(denoiser, x0):
    """log p of what the model's density at t_min is: that of x_{t_min} / alpha."""
    alpha = float(denoiser.schedule.alpha(denoiser.t_min).detach())
    return denoiser.log_prob(alpha * x0, denoiser.t_min) + x0[0].numel() * math.log(alpha)


def worst(denoiser, x0, sampler=FINE):
    found = log_prob(denoiser, x0, sampler=sampler)
    return float((found.nats_per_dim - truth(denoiser, x0).detach() / x0[0].numel()).abs().max())


# -- against closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "schedule"), [(2, Cosine()), (2, Flow()), (64, Cosine())])
def test_with_the_exact_divergence_a_mixture_has_its_log_density(dimensions, schedule):
    assert float(schedule.alpha(1.0)) ** 2 < 1e-4
    data = mixture(schedule, dimensions)
    assert worst(data, data.draw(2, torch.Generator().manual_seed(1))) < 1e-3


@pytest.mark.parametrize("dimensions", [2, 64])
def test_with_the_exact_divergence_a_gaussian_has_its_log_density(dimensions):
    variances = torch.linspace(0.02, 1.5, dimensions).double()
    data = Gaussian(Cosine(), torch.zeros(dimensions).double(), variances)
    x0 = data.draw(2, torch.Generator().manual_seed(1))
    found = log_prob(data, x0, sampler=FINE)
    assert found.probes == 0 and bool((found.standard_error == 0).all())
    assert float((found.nats - truth(data, x0)).abs().max()) / dimensions < 1e-3


def test_every_schedule_gives_its_own_density(any_schedule):
    """Of data with the prior's law at t_max, because some schedules keep signal there."""
    data = Gaussian(any_schedule, torch.zeros(2).double(), torch.full((2,), 0.3).double())
    assert worst(data, data.draw(2, torch.Generator().manual_seed(1)), sampler=None) < 1e-3


class Predicting(nn.Module):
    """What an exact denoiser would have a network predict, whichever prediction that is."""

    def __init__(self, exact, prediction, label):
        super().__init__()
        self.exact, self.prediction, self.label = exact, prediction, label

    def forward(self, x, c_noise):
        level = self.label
        t = c_noise / 1000 if level == "time" else self.exact.schedule.time(-8 * c_noise)
        estimate = self.exact(x / self.scale(t), t)
        return estimate.combination(self.prediction.target)

    def scale(self, t):
        level = self.exact._level(torch.zeros(len(t), 1), t)
        return self.prediction.c_in(level)[:, None]


@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_every_prediction_gives_the_same_density(name):
    prediction = PREDICTIONS[name]()
    exact = mixture(VariancePreserving(), 2)
    denoiser = Denoiser(
        Predicting(exact, prediction, prediction.label), exact.schedule, prediction, data_std=exact.data_std
    )
    x0 = exact.draw(2, torch.Generator().manual_seed(1))
    assert_close(log_prob(denoiser, x0).nats, truth(exact, x0), rtol=0, atol=0.01)  # the prior's mismatch, mostly


def test_hutchinson_in_3072_dimensions_is_within_its_standard_error():
    """Components that are not told apart for long: the Jacobian is far from diagonal, so probes do differ."""
    dimensions, count = 3072, 6
    generator = torch.Generator().manual_seed(0)
    means = 0.03 * torch.randn(3, dimensions, generator=generator, dtype=torch.float64)
    weights = torch.full((3,), 1 / 3).double()
    variances = torch.linspace(0.1, 1.0, 3 * dimensions).double().view(3, dimensions)[:1].expand(3, -1)
    data = Mixture(Cosine(), weights, means - weights @ means, variances)
    x0 = data.draw(count, generator).view(count, 3, 32, 32)
    found = log_prob(data, x0, range(count), probes=8, sampler=Adaptive(rtol=1e-4, atol=1e-4))
    error = found.nats - truth(data, x0)
    assert bool((found.standard_error > 0.01).all())
    mean, standard_error = float(error.mean()), float(found.standard_error.square().sum().sqrt() / count)
    assert abs(mean) < 3 * standard_error + 1e-4 * dimensions
    assert bool((error.abs() < 5 * found.standard_error + 1e-4 * dimensions).all())  # 7 degrees of freedom
    assert abs(mean) / dimensions < 1e-3
    assert found.probes == 8 and found.dimensions == dimensions


def test_probes_estimate_the_exact_divergence():
    data = mixture(Cosine(), 8)
    x0 = data.draw(4, torch.Generator().manual_seed(1))
    exact, estimated = log_prob(data, x0), log_prob(data, x0, exact=False, probes=16)
    assert bool((estimated.standard_error > 0).all())
    assert bool(((estimated.nats - exact.nats).abs() < 4 * estimated.standard_error).all())
    assert_close(estimated.prior, exact.prior, rtol=1e-3, atol=1e-3)  # the way is the same


def test_the_reported_error_is_the_spread_over_seeds():
    """One sample under 200 seeds: neither less nor more, in fixed steps whose error is common to all."""
    data = mixture(Cosine(), 4)
    x0 = data.draw(1, torch.Generator().manual_seed(1)).expand(200, -1)
    times = levels_up(data, 15)
    found = log_prob(data, x0, range(200), exact=False, probes=4, sampler=Heun(), times=times)
    spread = float(found.nats.std())
    assert spread > 0.01
    assert 0.8 < float(found.standard_error.square().mean().sqrt()) / spread < 1.25
    exact = log_prob(data, x0[:1], sampler=Heun(), times=times)
    assert abs(float(found.nats.mean() - exact.nats)) < 4 * spread / math.sqrt(200)


class Wrong(Wrapper):
    """An estimate whose v is `factor` times what it should be."""

    def __init__(self, denoiser, factor):
        super().__init__(denoiser)
        self.factor = factor

    def forward(self, x_t, t, condition=None):
        estimate = self.denoiser(x_t, t)
        return Estimate(x_t, self.factor * estimate.v, estimate.level, v_of)

    def log_prob(self, x, t):
        return self.denoiser.log_prob(x, t)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
def test_a_wrong_sign_or_factor_is_seen(factor):
    data = mixture(Cosine(), 2)
    assert worst(Wrong(data, factor), data.draw(4, torch.Generator().manual_seed(1))) > 0.1


def test_the_density_integrates_to_one():
    """A network with random weights has a density too, by its own ODE: it adds up to 1 on a grid."""
    torch.manual_seed(0)
    network = MLP(1, width=16, depth=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    x = torch.linspace(-8, 8, 60)[:, None]
    found = log_prob(Denoiser(network, Cosine(), "v"), x, sampler=FINE)
    assert float(torch.trapezoid(found.nats.exp(), x[:, 0].double())) == pytest.approx(1, abs=2e-3)


# -- how it is walked -------------------------------------------------------------------------------------------------


def test_fixed_steps_come_to_the_same():
    data = mixture(Cosine(), 2)
    x0 = data.draw(4, torch.Generator().manual_seed(1))
    fine, expected = levels_up(data, 200), truth(data, x0) / 2
    found = log_prob(data, x0, sampler=Heun(), times=fine)
    assert_close(found.nats_per_dim, expected, rtol=0, atol=1e-3)
    assert found.evaluations.tolist() == [400] * 4
    assert fine[0] == data.t_min and fine[-1] == data.t_max


@pytest.mark.slow
def test_every_solver_walks_it(any_solver):
    """Between two interior levels, in one dimension and 40 steps, with the density at the first of them."""
    schedule = Cosine()
    t_min, t_max = (float(schedule.time(log_snr)) for log_snr in (4.0, -6.0))
    data = Gaussian(schedule, torch.zeros(1).double(), torch.full((1,), 0.5).double(), t_min, t_max)
    x0, alpha = torch.tensor([[0.3], [-1.1]]).double(), float(schedule.alpha(t_min))
    times = schedule.time(torch.linspace(4.0, -6.0, 41).double())
    times[0], times[-1] = t_min, t_max
    found = log_prob(data, x0, sampler=any_solver, times=times)
    expected = data.log_prob(alpha * x0, t_min) + math.log(alpha)
    assert float((found.nats - expected).abs().max()) < (0.1 if any_solver.convergence_order == 1 else 0.02)


def test_a_samples_result_is_its_own_whatever_the_batch():
    data = mixture(Cosine(), 16)
    x0, seeds = data.draw(5, torch.Generator().manual_seed(1)), torch.tensor([3, 14, 15, 92, 65])
    whole = log_prob(data, x0, seeds, exact=False, probes=3)
    for chosen in (slice(0, 5, 2), slice(1, 5, 2)):
        part = log_prob(data, x0[chosen], seeds[chosen], exact=False, probes=3)
        assert_close(part.nats, whole.nats[chosen], rtol=1e-9, atol=1e-9)
        assert torch.equal(part.evaluations, whole.evaluations[chosen])
    assert len(set(whole.evaluations.tolist())) > 1


def test_networks_are_measured_in_eval_mode_and_full_precision():
    torch.manual_seed(0)
    network = MLP(2, width=16, depth=1, dropout=0.5)
    denoiser = Denoiser(network, Cosine(), "v", precision=torch.bfloat16).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x0 = torch.randn(3, 2)
    first, second = (log_prob(denoiser, x0).nats for _ in range(2))
    assert torch.equal(first, second)
    assert denoiser.training and denoiser.network.training and denoiser.precision is torch.bfloat16
    denoiser.precision = None
    assert torch.equal(log_prob(denoiser.eval(), x0).nats, first)


# -- what is refused --------------------------------------------------------------------------------------------------


class Deaf(Wrapper):
    def forward(self, x_t, t, condition=None):
        return self.denoiser(x_t.detach(), t)


def test_what_has_no_likelihood_is_refused():
    data, x0 = mixture(Cosine(), 4), torch.zeros(2, 4).double()
    with pytest.raises(InputError, match="no gradient passes through Posterior"):
        log_prob(Posterior(data, Masked(torch.ones(1, 2, 2)), torch.zeros(1, 2, 2)), x0.view(2, 1, 2, 2))
    with pytest.raises(InputError, match="no gradient passes through this denoiser"):
        log_prob(Deaf(data), x0)
    with pytest.raises(InputError, match="draws noise"):
        log_prob(data, x0, sampler=DDPM())
    with pytest.raises(InputError, match="1 probe or more, not 0"):
        log_prob(data, x0, probes=0)
    with pytest.raises(InputError, match="3 seeds were given for 2 samples"):
        log_prob(data, x0, range(3))
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        log_prob(data, x0)
    with pytest.raises(InputError, match="integrated from t_min"):
        log_prob(data, x0, times=levels_up(data)[1:])
    with pytest.raises(InputError, match="1 step or more, not 0"):
        levels_up(data, 0)


def test_guidance_that_gradients_pass_has_a_likelihood():
    """At scale 1 that of the condition; at others another, and it is no longer normalised."""

    class Two(Gaussian):
        def __init__(self):
            super().__init__(Cosine(), torch.zeros(2).double(), torch.full((2,), 0.3).double())

        @property
        def conditions(self):
            return ("label",)

        def encode(self, condition, drop=None):
            return {
                "vector": torch.zeros(1, 1)
                if drop is not None and bool(torch.as_tensor(drop).all())
                else torch.ones(1, 1)
            }

        def forward(self, x_t, t, condition=None):
            estimate = super().forward(x_t, t)
            return Estimate.of_x0(x_t, estimate.x0 * (0.8 + 0.2 * condition["vector"].to(x_t)), estimate.level)

    x0 = torch.tensor([[0.3, -0.2], [0.8, 0.1]]).double()
    plain = log_prob(Two(), x0).nats
    assert_close(log_prob(ClassifierFree(Two(), 1.0), x0, condition={"label": 1}).nats, plain)
    assert (log_prob(ClassifierFree(Two(), 2.0), x0, condition={"label": 1}).nats - plain).abs().min() > 0.01
