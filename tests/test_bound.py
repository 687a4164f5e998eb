"""The variational bound, discrete and continuous: its terms, the learned variance, and what it bounds."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from laws import law
from undiffuse import Denoiser, InputError, Objective
from undiffuse.denoiser import Estimate
from undiffuse.exact import Gaussian
from undiffuse.likelihood import variational_bound
from undiffuse.noise import NoiseSource
from undiffuse.objective import TIME_LAWS, Draws, VariationalBound
from undiffuse.prediction import Level, V
from undiffuse.samplers import DDPM, sample
from undiffuse.schedule import Cosine, CosineTable, Learned, Linear, VariancePreserving
from undiffuse.transition import gaussian_log_prob, posterior, transition

STD = 0.6
LEVEL = V(label="log-snr")


class Affine(nn.Module):
    """A mean and a variance's fraction, each affine in x: float64, for 1-D data of any batch."""

    def __init__(self, mean=(0.3, 0.1), fraction=(0.2, 0.1)):
        super().__init__()
        self.mean, self.fraction = (nn.Parameter(torch.tensor(v).double()) for v in (mean, fraction))
        self.learned_variance = True

    def forward(self, x, c_noise):
        return torch.cat([weight[0] * x + weight[1] for weight in (self.mean, self.fraction)], 1)


class Mean(nn.Module):
    """The mean of such a network alone."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network or Affine()

    def forward(self, x, c_noise):
        return self.network(x, c_noise).chunk(2, 1)[0]


def gaussian(schedule, std=STD, mean=0.2):
    return Gaussian(schedule, torch.tensor([mean]).double(), torch.tensor([[std**2]]).double())


class Informed(Gaussian):
    """The exact denoiser of a Gaussian, with the variance of a step from t to s that is exact too."""

    learns_variance = True

    def __init__(self, schedule, fractions):
        super().__init__(schedule, torch.tensor([0.2]).double(), torch.tensor([[STD**2]]).double())
        self.fractions = fractions

    def forward(self, x_t, t, condition=None):
        estimate = super().forward(x_t, t, condition)
        fraction = torch.stack([self.fractions[round(float(v), 9)] for v in torch.as_tensor(t).expand(len(x_t))])
        return Estimate(x_t, estimate.output, estimate.level, estimate.target, fraction[:, None].expand_as(x_t))


def best_fraction(schedule, t, s, std=STD):
    """r of the true variance of x_s given x_t: that of the posterior, and what x_0 adds."""
    step, alpha, sigma = posterior(schedule, t, s), schedule.alpha(t), schedule.sigma(t)
    left = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    return torch.log1p(step.of_x0**2 * left / step.variance) / (2 * torch.log(sigma / schedule.sigma(s)))


# -- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VariancePreserving()], ids=["table", "cosine", "vp"])
@pytest.mark.parametrize("predicts", ["noise", "x0", "v"])
def test_a_term_is_the_divergence_of_the_models_step_from_the_posterior(schedule, predicts):
    denoiser, steps = Denoiser(Affine(), schedule, predicts), 50
    source = NoiseSource(range(6), (1,), dtype=torch.float64)
    x0, t = 0.5 * source.normal("probe"), torch.linspace(0.1, 0.9, 6).double()
    draws = Draws(t, source.normal("noise"), t > 2)
    law_of_times = "table" if schedule.length else "uniform"
    found = VariationalBound(law_of_times, steps=steps, levels=None)(denoiser, x0, draws=draws)
    count = schedule.length or steps
    s = t - (1 / count if schedule.length else (1 - denoiser.t_min) / count)
    x_t = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * draws.noise
    estimate, step = denoiser(x_t, t), posterior(schedule, t, s)
    beta = transition(schedule, t, s)[1]
    of_x, of_x0, least, log_ratio = (v[:, None] for v in (*step, torch.log(beta / step.variance)))
    ours = Normal(of_x * x_t + of_x0 * estimate.x0, (least * torch.exp(estimate.variance_fraction * log_ratio)).sqrt())
    true = Normal(of_x * x_t + of_x0 * x0, least.sqrt())
    assert_close(found, count * kl_divergence(true, ours)[:, 0], rtol=1e-6, atol=1e-9)


def test_the_last_term_is_the_decoder_with_the_variance_of_the_step_before():
    schedule, steps = Linear(), 1000
    denoiser = Denoiser(Affine(), schedule, "x0")
    x0, t = torch.tensor([[0.2], [-0.7]]).double(), torch.full((2,), 1e-3).double()
    draws = Draws(t, torch.tensor([[0.4], [-1.0]]).double(), t > 2)
    found = VariationalBound("table", levels=None)(denoiser, x0, draws=draws)
    x_t = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * draws.noise
    estimate = denoiser(x_t, t)
    beta, least = schedule.betas[0], posterior(schedule, 2 * t[:1], t[:1]).variance
    log_std = ((1 - estimate.variance_fraction) * least.log() + estimate.variance_fraction * beta.log()) / 2
    assert_close(found, -steps * gaussian_log_prob(x0, estimate.x0, log_std)[:, 0])


def test_many_steps_come_to_the_bound_of_continuous_time():
    denoiser = Denoiser(Affine(fraction=(0.0, -1.0)), Cosine(), "v")  # r = 0
    plain = Denoiser(Mean(denoiser.network), Cosine(), "v")
    source = NoiseSource(range(8), (1,), dtype=torch.float64)
    x0, t = source.normal("probe"), torch.linspace(0.05, 0.95, 8).double()
    draws = Draws(t, source.normal("noise"), t > 2)
    continuous = Objective("bound")(plain, x0, draws=draws)
    errors = [
        float((VariationalBound(steps=n, levels=None)(denoiser, x0, draws=draws) / continuous - 1).detach().abs().max())
        for n in (2000, 20000)
    ]
    assert errors[1] < 2e-3 and errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("t_min", [None, 0.11])
def test_on_a_table_the_mean_of_the_bound_is_the_sum_of_its_terms(t_min):
    """Every step of the range once, the last of them a decoder: by the time law, and by hand."""
    schedule, count = CosineTable(20), 18000
    denoiser = Denoiser(Affine(), schedule, "x0", t_min=t_min)
    law, objective = TIME_LAWS["table"](), VariationalBound("table", levels=None)
    steps = torch.arange(1 if t_min is None else 3, 21).double()
    u = (torch.arange(count).double() + 0.5) / count
    times = law.times(u, schedule, denoiser.t_min, 1.0)
    assert_close(times.unique() * 20, steps)
    signs = torch.tensor([[a, b] for a in (-1, 1) for b in (-1, 1)]).double()

    def mean(t):
        x0, noise = STD * signs[:, :1].repeat(len(t), 1), signs[:, 1:].repeat(len(t), 1)
        t = t.repeat_interleave(4)
        return objective(denoiser, x0, draws=Draws(t, noise, t > 2)).view(-1, 4).mean(1)

    assert_close(mean(times).mean(), mean(steps / 20).mean())  # len(steps) times the mean of terms


# -- the hybrid loss --------------------------------------------------------------------------------------------------


def test_the_hybrid_loss_teaches_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    denoiser = Denoiser(Affine(), Cosine(), "noise")
    source = NoiseSource(range(32), (1,), dtype=torch.float64)
    x0 = source.normal("probe")
    hybrid, plain, bound = Objective(variance=0.01, levels=None), Objective(), VariationalBound(levels=None)
    draws = hybrid.draw(denoiser, source)
    mean_only = Denoiser(Mean(denoiser.network), Cosine(), "noise")
    of_mean, of_fraction = torch.autograd.grad(hybrid(denoiser, x0, draws=draws).mean(), [*denoiser.parameters()])
    assert_close(of_mean, torch.autograd.grad(plain(mean_only, x0, draws=draws).mean(), denoiser.network.mean)[0])
    whole = torch.autograd.grad(bound(denoiser, x0, draws=draws).mean(), [*denoiser.parameters()])
    assert_close(of_fraction, 0.01 / math.log(2) * whole[1])
    assert (whole[0] - of_mean).abs().min() > 1e-3


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.8), (0.4, 0.35), (0.06, 0.01)])
def test_a_learned_variance_comes_to_that_of_the_true_step(t, s):
    """On Gaussian data, with the exact mean: the minimum of the bound over r is at the r of the true variance."""
    schedule, count = VariancePreserving(), round(1 / (t - s))
    exact, fraction = gaussian(schedule), nn.Parameter(torch.tensor(0.5).double())

    class Exact(nn.Module):
        learned_variance = True

        def forward(self, x, c_noise):
            return torch.cat([exact(x, c_noise / 1000).x0, (2 * fraction - 1).expand_as(x)], 1)

    denoiser = Denoiser(Exact(), schedule, "x0", t_min=1e-6, t_max=1.0)
    signs = torch.tensor([[a, b] for a in (-1, 1) for b in (-1, 1)]).double()  # exact for quadratic functions
    times = torch.full((4,), t).double()
    draws = Draws(times, signs[:, 1:], times > 2)
    optimizer = torch.optim.LBFGS([fraction], max_iter=50, tolerance_grad=1e-12, tolerance_change=0)
    objective = VariationalBound(steps=count, levels=None)

    def closure():
        optimizer.zero_grad()
        loss = 1e3 * objective(denoiser, 0.2 + STD * signs[:, :1], draws=draws).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    gap = (1 - 1e-6) / count
    expected = best_fraction(schedule, times[:1], times[:1] - gap)
    assert_close(fraction.detach(), expected[0], rtol=1e-5, atol=1e-6)
    assert 0 < float(fraction) < 1


# -- the sampler ------------------------------------------------------------------------------------------------------


def test_with_the_true_variance_ancestral_sampling_is_exact_in_any_number_of_steps():
    schedule = VariancePreserving()
    for steps in (2, 5, 20):
        times = torch.linspace(1.0, 0.02, steps + 1).double()
        fractions = {round(float(t), 9): best_fraction(schedule, t[None], s[None])[0] for t, s in pairwise(times)} | {
            round(0.02, 9): torch.tensor(0.0).double()
        }
        denoiser = Informed(schedule, fractions)
        alpha, sigma = (float(v) for v in (schedule.alpha(1.0), schedule.sigma(1.0)))
        start = alpha * 0.2, alpha**2 * STD**2 + sigma**2
        mean, variance = law(denoiser, DDPM("learned"), times, *start)
        alpha, sigma = (float(v) for v in (schedule.alpha(0.02), schedule.sigma(0.02)))
        assert mean == pytest.approx(alpha * 0.2, rel=1e-6)
        assert variance == pytest.approx(alpha**2 * STD**2 + sigma**2, rel=1e-6)
        fixed = [law(gaussian(schedule), DDPM(kind), times, *start)[1] for kind in ("beta-tilde", "beta")]
        assert fixed[0] < variance < fixed[1]


@pytest.mark.parametrize(("r", "kind"), [(0.0, "beta-tilde"), (1.0, "beta")])
def test_the_ends_of_the_fraction_are_the_two_fixed_variances(r, kind):
    schedule = Cosine()
    times = torch.linspace(0.9, 0, 6).double()
    denoiser = Informed(schedule, {round(float(t), 9): torch.tensor(r).double() for t in times})
    x = torch.linspace(-1, 1, 5).double()[:, None]
    learned, fixed = (sample(denoiser, DDPM(name), x, times, range(5)) for name in ("learned", kind))
    assert_close(learned, fixed, rtol=1e-12, atol=1e-12)


def test_a_network_without_a_variance_cannot_be_sampled_with_it():
    with pytest.raises(InputError, match="learned_variance=true"):
        sample(gaussian(Cosine()), DDPM("learned"), torch.zeros(1, 1).double(), torch.tensor([0.9, 0.5, 0.0]), [0])


# -- what it bounds ---------------------------------------------------------------------------------------------------

DIM = 100  # dimensions alike: one sample of them says as much as a hundred


def many(schedule, std=STD):
    return Gaussian(schedule, torch.full((DIM,), 0.2).double(), torch.full((DIM,), std**2).double())


@pytest.mark.parametrize(
    "schedule", [Cosine(), VariancePreserving(), Linear(), Learned()], ids=lambda schedule: type(schedule).__name__
)
def test_the_bound_of_an_exact_denoiser_is_its_likelihood_from_above(schedule):
    """In continuous time nothing is lost but in the last step, where the decoder's variance is not the true one."""
    x0 = 0.2 + STD * NoiseSource(range(300), (DIM,), dtype=torch.float64).normal("probe")
    bound = variational_bound(many(schedule), x0, range(300), draws=32, levels=None)
    excess = bound.total + Normal(0.2, STD).log_prob(x0).mean(1)
    error = float(excess.std() / math.sqrt(len(excess)))
    assert -3 * error < float(excess.mean()) < 0.003 + 3 * error and error < 0.015
    assert_close(bound.bits_per_dim, bound.total / math.log(2))


def test_a_wrong_denoiser_has_a_larger_bound_by_the_divergence_of_its_law_from_the_true_one():
    x0 = 0.2 + STD * NoiseSource(range(300), (DIM,), dtype=torch.float64).normal("probe")
    right, wrong = (
        variational_bound(many(Cosine(), std), x0, range(300), draws=32, levels=None).total for std in (STD, 0.5 * STD)
    )
    expected = float(kl_divergence(Normal(0.2, STD), Normal(0.2, 0.5 * STD)))
    error = float((wrong - right).std() / math.sqrt(300))
    assert abs(float((wrong - right).mean()) - expected) < 4 * error < 0.1 * expected


def test_bits_of_8_bit_data_that_are_certain_are_none():
    """Data that is one value, known to the denoiser: nothing is left to be said."""
    value = torch.full((50, 1), 100 / 127.5 - 1).double()
    denoiser = Gaussian(Cosine(), value[0], torch.zeros(1, 1).double())
    bound = variational_bound(denoiser, value, range(50))
    assert float(bound.diffusion.abs().max()) < 1e-12
    assert (
        0 <= float(bound.reconstruction.max()) < 0.06
    )  # the bin's edge is two standard deviations of the decoder away
    with pytest.raises(InputError, match="not 0"):
        variational_bound(denoiser, value, range(50), draws=0)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "denoiser", "message"),
    [
        (lambda: Objective("bound", "log-normal"), lambda: Denoiser(Affine(), Cosine()), "uniform time"),
        (lambda: VariationalBound("logit-normal"), lambda: Denoiser(Affine(), Cosine()), "uniform time"),
        (lambda: Objective("bound", offset=0.1), lambda: Denoiser(Affine(), Cosine()), "offset must be 0"),
        (lambda: Objective("bound", uncertainty=True), lambda: Denoiser(Affine(), Cosine()), "no bound"),
        (lambda: Objective("simple"), lambda: Denoiser(Mean(), Learned(), LEVEL), "weight=bound"),
        (lambda: VariationalBound(), lambda: Denoiser(Mean(), Learned(), LEVEL), "continuous time"),
        (lambda: Objective("bound"), lambda: Denoiser(Affine(), Learned(), LEVEL), "without a learned variance"),
        (lambda: Objective("bound", "importance"), lambda: Denoiser(Mean(), Learned(), LEVEL), "the same work"),
        (lambda: Objective("bound"), lambda: Denoiser(Mean(), Learned(), LEVEL, t_min=0.3), "fixed ends"),
        (lambda: Objective("bound"), lambda: Denoiser(Mean(), Learned(), LEVEL, t_max=0.9), "fixed ends"),
        (lambda: Objective("bound"), lambda: Denoiser(Mean(), Learned(), "v"), "label=log-snr"),
        (lambda: VariationalBound("stratified"), lambda: Denoiser(Affine(), Linear()), "time law table"),
        (lambda: Objective(), lambda: Denoiser(Affine(), Linear()), "time law table"),
        (lambda: VariationalBound(steps=1), lambda: None, "2 steps or more"),
        (lambda: Objective(variance=0.0), lambda: None, "share above 0"),
    ],
)
def test_what_makes_no_bound_is_refused(objective, denoiser, message):
    with pytest.raises(InputError, match=message):
        objective().check(denoiser())


def test_levels_are_worked_out_once_and_handed_on():
    """A denoiser takes a `Level` in the place of times; the estimate is the same."""
    denoiser, x = Denoiser(Affine(), Cosine()), torch.ones(3, 1).double()
    t = torch.tensor([0.2, 0.5, 0.9]).double()
    assert torch.equal(denoiser(x, Level(Cosine(), t)).x0, denoiser(x, t).x0)


@pytest.mark.parametrize("t_max", [0.5, 0.8])
def test_where_signal_is_left_at_the_end_the_prior_has_its_part(t_max):
    """Data of mean 0 have the prior's own law at t_max, so the bound is the likelihood there, too."""
    data = Gaussian(Cosine(), torch.zeros(DIM).double(), torch.full((DIM,), STD**2).double(), t_max=t_max)
    x0 = STD * NoiseSource(range(300), (DIM,), dtype=torch.float64).normal("probe")
    bound = variational_bound(data, x0, range(300), draws=32, levels=None)
    excess = bound.total + Normal(0.0, STD).log_prob(x0).mean(1)
    error = float(excess.std() / math.sqrt(len(excess)))
    assert -3 * error < float(excess.mean()) < 0.003 + 3 * error and error < 0.015
    # by hand: the divergence of q(x_T | x_0) from the prior
    schedule, end = Cosine(), torch.tensor(t_max).double()
    ours = Normal(schedule.alpha(end) * x0, schedule.sigma(end).expand_as(x0))
    by_hand = kl_divergence(ours, Normal(torch.zeros_like(x0), data.prior_std())).mean(1)
    assert_close(bound.prior, by_hand)
    assert float(by_hand.mean()) > 0.01
