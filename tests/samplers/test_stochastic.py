"""Samplers that draw noise, on Gaussian data, where a run is affine in its noise and its law is known exactly."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from laws import law
from undiffuse.denoiser import Estimate
from undiffuse.exact import FiniteData, Gaussian, Mixture
from undiffuse.noise import NoiseSource
from undiffuse.samplers import (
    DDIM,
    DDPM,
    Ancestral,
    Churn,
    Consistency,
    DPMSolver,
    DPMSolverPlusPlus,
    DPMSolverPlusPlusSingle,
    Euler,
    Heun,
    Langevin,
    LinearSampler,
    Midpoint,
    Restart,
    Sampler,
    grid,
    named,
    sample,
    walk,
)  # fmt: skip
from undiffuse.schedule import EDM, Cosine, Flow, Linear, SubVariancePreserving, VariancePreserving
from undiffuse.transition import transition

MEAN, VARIANCE = 0.7, 0.36
DATA = torch.tensor([MEAN], dtype=torch.float64), torch.tensor([[VARIANCE]], dtype=torch.float64)


def gaussian(schedule=None):
    return Gaussian(schedule or Cosine(), *DATA)


def marginal(schedule, t, mean=MEAN, variance=VARIANCE):
    """Mean and variance of x_t."""
    return float(schedule.alpha(t) * mean), float(schedule.alpha(t) ** 2 * variance + schedule.sigma(t) ** 2)


def even(schedule, count, first=-4.0, last=4.0):
    """Times that are uniform in the log-SNR."""
    return schedule.time(torch.linspace(first, last, count + 1, dtype=torch.float64))


def walked(denoiser, sampler, x, times, seeds):
    """Where a walk ends, and the state that it gives back."""
    walking = walk(denoiser, sampler, x, times, seeds)
    while True:
        try:
            x = next(walking)
        except StopIteration as end:
            return x, end.value


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), SubVariancePreserving(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_the_moments_converge_at_the_declared_weak_order(any_stochastic, schedule):
    if isinstance(any_stochastic, (Langevin, Restart, Consistency)):
        pytest.skip("of whom more below")
    if isinstance(any_stochastic, Churn):  # at its default, gamma is at its bound up to 97 steps
        any_stochastic = replace(any_stochastic, amount=5.0)
    errors = []
    for count in (48, 96):
        times = even(schedule, count)
        found = law(gaussian(schedule), any_stochastic, times, *marginal(schedule, times[0]))
        true = marginal(schedule, times[-1])
        errors.append([abs(a - b) for a, b in zip(found, true, strict=True)])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < coarse * 2 ** -(any_stochastic.convergence_order - 0.2) + 1e-5, errors
    assert max(errors[1]) < 0.1 * true[1]


def test_runs_have_the_law_of_their_recursion(any_stochastic):
    if isinstance(any_stochastic, Langevin):
        pytest.skip("is not linear")
    schedule, count = Cosine(), 4000
    denoiser = gaussian(schedule)
    denoiser.t_max = 0.9
    times = grid.named("log-snr", schedule, 12, denoiser.t_min, 0.9)
    start = denoiser.prior(range(count), (1,), torch.float64) + schedule.alpha(0.9) * MEAN
    samples = sample(denoiser, any_stochastic, start, times, seeds=range(count))
    mean, variance = law(denoiser, any_stochastic, times, *marginal(schedule, times[0]))
    assert abs(float(samples.mean()) - mean) < 5 * math.sqrt(variance / count)
    assert abs(float(samples.var()) - variance) < 5 * variance * math.sqrt(2 / count)


@pytest.mark.parametrize("sampler", [DDPM(), Restart(), Churn()], ids=lambda s: type(s).__name__)
def test_samples_of_a_correlated_gaussian_have_its_mean_and_covariance(sampler):
    mean, covariance = torch.tensor([0.6, -0.4]).double(), torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double()
    denoiser, count = Gaussian(VariancePreserving(), mean, covariance), 3000
    times = grid.named("log-snr", denoiser.schedule, 150, denoiser.t_min, 1.0)
    x = sample(denoiser, sampler, denoiser.prior(range(count), (2,), torch.float64), times, range(count))
    standard_error = (covariance.diagonal() / count).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * standard_error + 0.02).all()
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance**2
    assert ((torch.cov(x.T) - covariance).abs() < 5 * (spread / count).sqrt() + 0.02).all()


@dataclass(frozen=True)
class NoiseOnTop(LinearSampler):
    """The ODE's step with the SDE's noise added."""

    stochastic = True

    def rows(self, schedule, times):
        return torch.cat([DDIM().rows(schedule, times), DDPM().rows(schedule, times)[:, 2:]], 1)


def test_noise_on_top_of_an_ode_step_does_not_have_the_marginals():
    errors = []
    for count in (48, 96):
        times = even(Cosine(), count)
        pairs = [law(gaussian(), sampler, times, *marginal(Cosine(), times[0])) for sampler in (NoiseOnTop(), DDPM())]
        errors.append([abs(variance - marginal(Cosine(), times[-1])[1]) for _, variance in pairs])
    (wrong, right), (wrong_finer, right_finer) = errors
    assert wrong_finer > 0.9 * wrong > 10 * right > 15 * right_finer


# -- ancestral sampling and its forms ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("same", [DDIM(eta=1.0), DPMSolverPlusPlus(1, eta=1.0)], ids=repr)
def test_eta_one_is_ancestral_sampling(any_schedule, same):
    times = torch.tensor([0.9037, 0.7, 0.4037, 0.2, 0.0]).double()[:, None]
    found, ddpm = same.coefficients(any_schedule, times), DDPM("beta-tilde").coefficients(any_schedule, times)
    assert_close(found, ddpm, rtol=1e-8, atol=1e-10)


def mixture():
    means = torch.tensor([[-1.0, 0], [1, 1]]).double()
    return Mixture(Cosine(), torch.ones(2), means, 0.1 * torch.eye(2).double().expand(2, 2, 2))


def runs(*samplers, steps=12, dtype=torch.float64):
    denoiser = mixture()
    times = grid.named("uniform", Cosine(), steps, denoiser.t_min, 1.0)
    x = denoiser.prior(range(8), (2,), dtype)
    return [sample(denoiser, sampler, x, times, seeds=range(8)) for sampler in samplers]


def test_ddim_with_eta_one_and_ddpm_give_the_same_samples():
    assert_close(*runs(DDIM(eta=1.0), DDPM(), dtype=torch.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_steps_around_euler_over_the_ratio_are_ddim(eta):
    ancestral, ddim = runs(Ancestral(Euler("ratio"), eta), DDIM(eta))
    assert_close(ancestral, ddim, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [Heun("ratio"), Euler(), Midpoint(), DDIM(), DPMSolverPlusPlusSingle(3)], ids=repr)
def test_churn_of_nothing_is_its_solver(solver):
    churned, plain = runs(Churn(solver, amount=0.0), solver)
    assert torch.equal(churned, plain)


def test_ddim_keeps_the_variance_of_the_noise_whatever_eta(any_schedule):
    """Given x_0, a step takes N(alpha_t x_0, sigma_t^2) to N(alpha_s x_0, sigma_s^2)."""
    t, s = torch.tensor([0.5037, 0.9037]).double(), torch.tensor([0.2037, 0.7037]).double()
    for eta in (0.0, 0.3, 1.0):
        c_x, c_x0, *drawn = DDIM(eta).rows(any_schedule, torch.stack([t, s]))[0]
        c_z = drawn[0] if drawn else torch.zeros(2)
        assert_close(c_x * any_schedule.alpha(t) + c_x0, any_schedule.alpha(s))
        assert_close(c_x**2 * any_schedule.sigma(t) ** 2 + c_z**2, any_schedule.sigma(s) ** 2)
        assert (c_z > 0).all() == (eta > 0)


def law_on_a_point(sampler, schedule, count):
    """Mean and variance found and true, for data that is a point: then x0_hat is exact."""
    denoiser, times = FiniteData(schedule, DATA[0][None]), even(schedule, count, -3, 5)
    found = law(denoiser, sampler, times, *marginal(schedule, times[0], variance=0))
    return found, marginal(schedule, times[-1], variance=0)


KEEPING = [
    DDPM(),
    DDIM(0.5),
    Ancestral(Euler("ratio")),
    Ancestral(DPMSolverPlusPlusSingle(2)),
    Churn(DDIM()),
    Consistency(),
    Restart(DDIM(), low=0.2, high=1.0),
    *(DPMSolverPlusPlus(p, eta=eta) for p in (1, 2, 3) for eta in (0.5, 1.0, 2.0)),
    *(DPMSolverPlusPlusSingle(2, weights, eta) for weights in ("published", "exact") for eta in (0.5, 1.0, 2.0)),
]


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), SubVariancePreserving()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", KEEPING, ids=repr)
def test_given_x0_the_data_forms_keep_the_marginals_whatever_eta(sampler, schedule):
    assert_close(*law_on_a_point(sampler, schedule, 6), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2])
def test_given_x0_the_noise_form_tends_to_the_marginals_whatever_eta(order, eta):
    """In one step eps_hat is held while noise comes in, so its law is right to first order only."""
    errors = []
    for count in (100, 200):
        found, true = law_on_a_point(DPMSolver(order, eta=eta), Cosine(), count)
        errors.append(abs(found[1] - true[1]))
        assert abs(found[0] - true[0]) < 1e-9
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.1 * true[1]


def test_a_brownian_path_changes_the_noise_and_not_the_law():
    times = even(Cosine(), 12)
    for name in ("ddim:eta=1.0", "ddpm", "dpm++:eta=1", "dpm++-single:eta=1", "ancestral", "euler-maruyama"):
        both = [law(gaussian(), named(name, brownian=b), times, 0.0, 1.0) for b in (False, True)]
        assert_close(*both, rtol=1e-12, atol=1e-12)


# -- consistency ------------------------------------------------------------------------------------------------------


class Jump(Gaussian):
    """A model distilled to jump: its x0_hat is the end of the ODE."""

    def forward(self, x_t, t, condition=None):
        return Estimate.of_x0(x_t, self.transport(x_t, t, 0.0), self._level(x_t, t))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_consistency_models_have_the_datas_law_in_few_steps(any_schedule, count):
    jump = Jump(any_schedule, *DATA)
    times = torch.cat([torch.linspace(0.95, 0.2, count, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    found = law(jump, Consistency(), times, *marginal(any_schedule, times[0]))
    assert_close(found, (MEAN, VARIANCE), rtol=1e-8, atol=1e-8)
    mean = gaussian(any_schedule)  # which a model that is not distilled gives, and its samples are too narrow
    assert law(mean, Consistency(), times, *marginal(any_schedule, times[0]))[1] < 0.9 * VARIANCE


# -- restart ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [Heun("ratio"), DPMSolverPlusPlus(), DDPM(), DPMSolverPlusPlus(eta=1.0)], ids=repr)
def test_restarts_tend_to_the_marginals(inner):
    errors = []
    for count in (24, 96):
        sampler = Restart(inner, low=0.2, high=2.0, repeats=3, steps=count)
        times = even(Cosine(), count)
        found, true = law(gaussian(), sampler, times, *marginal(Cosine(), times[0])), marginal(Cosine(), times[-1])
        errors.append(max(abs(a - b) for a, b in zip(found, true, strict=True)))
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.02


@pytest.mark.parametrize("inner", [DDPM(), DDIM(), Heun("ratio")], ids=repr)
def test_nested_restarts_tend_to_the_marginals(inner):
    """All noise is fresh: had two intervals a draw in common, the variance would be wrong at any step."""
    sampler = Restart(Restart(inner, low=0.15, high=0.6, steps=24), low=0.4, high=3.0, steps=48)
    around = Restart(Restart(inner, low=0.4, high=3.0, steps=48), low=0.15, high=0.6, steps=24)
    same = Restart(Restart(inner, low=0.2, high=0.6, steps=24), low=0.2, high=3.0, steps=48)
    times = even(Cosine(), 96)
    for nested in (sampler, around, same):
        found, true = law(gaussian(), nested, times, *marginal(Cosine(), times[0])), marginal(Cosine(), times[-1])
        assert max(abs(a - b) for a, b in zip(found, true, strict=True)) < 0.02


class Levels(Gaussian):
    """Remembers sigma / alpha of every call, of the first sample."""

    def forward(self, x_t, t, condition=None):
        level = self._level(x_t, t)
        self.__dict__.setdefault("called", []).append(float(level.sigma[0] / level.alpha[0]))
        return super().forward(x_t, t, condition)


def at_ratios(*ratios):
    return torch.tensor(ratios, dtype=torch.float64) / 80  # of EDM


def called_at(sampler, *ratios):
    denoiser = Levels(EDM(), *DATA, t_min=1e-6)
    _, state = walked(denoiser, sampler, torch.ones(1, 1).double(), at_ratios(*ratios), [3])
    assert state.evaluations.tolist() == [len(denoiser.called)]
    return denoiser.called


def test_restarts_happen_where_the_walk_first_reaches_low():
    restart = Restart(DDIM(), low=0.1, high=1.0, repeats=2, steps=2)
    within = (0.1 ** (1 / 7) / 2 + 0.5) ** 7
    again = [1.0, within] * 2
    for ratios, expected in (
        ((5, 2, 0.1, 0.01, 0), [5, 2, *again, 0.1, 0.01]),
        ((5, 0.1, 0), [5, *again, 0.1]),
        ((1.0, 0.1, 0), [1.0, *again, 0.1]),
        ((5, 2, 0.1), [5, 2, *again]),
        ((5, 2, 0), [5, 2]),  # never stands at low
        ((0.9, 0.1, 0), [0.9, 0.1]),  # began below high
        ((0.05, 0.01, 0), [0.05, 0.01]),
    ):
        assert_close(called_at(restart, *ratios), [float(v) for v in expected], rtol=1e-9, atol=1e-9)
    assert len(called_at(restart, 5, 2, 0.5, 0.1, 0.05, 0)) == restart.evaluations(5)


def test_evaluations_of_restarts_are_counted():
    heun = Restart(Heun("ratio"), low=0.1, high=1.0, repeats=3, steps=4)
    assert len(called_at(heun, 5, 2, 0.1, 0.05, 0)) == heun.evaluations(4) == 7 + 3 * 4 * 2
    nested = Restart(Restart(DDIM(), low=0.02, high=0.05, repeats=2, steps=3), low=0.01, high=1.0, repeats=2, steps=5)
    called_at(nested, 5, 1, 0.02, 0.01, 0)


@pytest.mark.parametrize("inner", [Heun("ratio"), DPMSolverPlusPlus(3), DDPM()], ids=repr)
def test_samples_that_do_not_restart_are_untouched_and_others_restart_when_it_is_their_turn(inner):
    restart = Restart(inner, low=0.1, high=1.0, repeats=2, steps=3)
    denoiser = Gaussian(EDM(), *DATA, t_min=1e-6)
    columns = [(5, 2, 0.1, 0.05, 0), (0.9, 0.5, 0.1, 0.05, 0), (4, 0.08, 0.05, 0.02, 0), (9, 3, 2, 0.09, 0)]
    times, x = torch.stack([at_ratios(*c) for c in columns], 1), torch.linspace(-1, 1, 4).double()[:, None]
    together, state = walked(denoiser, restart, x, times, range(4))
    plain, counted = walked(denoiser, inner, x, times, range(4))
    assert_close(together[1], plain[1], rtol=1e-12, atol=1e-12)
    assert ((together - plain)[[0, 2, 3]].abs() > 1e-3).all()
    extra = 2 * 3 * inner.stages
    assert (state.evaluations - counted.evaluations).tolist() == [extra, 0, extra, extra]
    for i in range(4):
        alone, one = walked(denoiser, restart, x[i : i + 1], times[:, i], [i])
        assert_close(together[i], alone[0], rtol=1e-10, atol=1e-10)
        assert one.evaluations == state.evaluations[i]


# -- Langevin ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact(Sampler):
    """The ODE of a Gaussian, solved."""

    def coefficients(self, schedule, times):
        return torch.zeros(len(times) - 1, 0, times.shape[1], dtype=torch.float64)

    def step(self, denoiser, x, t, s, state, noise):
        return denoiser.transport(x, t, s), state.after(1)


DIMENSIONS = 4096  # where norms concentrate


def langevin_variance(schedule, spread, **options):
    """Of samples relative to their marginal's, from a start whose variance is `spread` times the marginal's."""
    data = torch.full((DIMENSIONS,), VARIANCE, dtype=torch.float64)
    denoiser, times = Gaussian(schedule, torch.zeros_like(data), data), even(schedule, 10)
    start = math.sqrt(spread * marginal(schedule, times[0])[1])
    x = start * NoiseSource(range(8), (DIMENSIONS,), dtype=torch.float64).normal("prior")
    end = sample(denoiser, Langevin(Exact(), **options), x, times, range(8))
    return float(end.square().mean()) / marginal(schedule, times[-1])[1]


@pytest.mark.parametrize("schedule", [Cosine(), EDM()], ids=repr)
def test_langevin_corrections_tend_to_the_marginals_and_stay_there(schedule):
    biases = [langevin_variance(schedule, 1.0, snr=snr, corrections=3) - 1 for snr in (0.4, 0.2, 0.1)]
    assert biases[0] > biases[1] > biases[2] and abs(biases[2]) < 0.04
    for spread in (0.25, 4.0):  # from far off, they draw it back
        assert abs(langevin_variance(schedule, spread, snr=0.2, corrections=8) - 1) < 0.15


def test_langevin_steps_of_a_sample_do_not_see_the_others():
    x = torch.ones(2, 5).double()
    pairs = [torch.stack([x[0], other]) for other in (x[0], 1000 * x[1])]
    data = torch.full((5,), VARIANCE).double()
    denoiser = Gaussian(Cosine(), torch.zeros_like(data), data)
    ends = [sample(denoiser, Langevin(), pair, even(Cosine(), 4), [1, 2])[0] for pair in pairs]
    assert_close(*ends, rtol=1e-12, atol=1e-12)


# -- Brownian paths ---------------------------------------------------------------------------------------------------

DRIVEN = [
    *("ddpm", "ddim:eta=1.0", "dpm++:order=2,eta=1", "dpm:order=1,eta=1", "dpm++-single:eta=1", "ancestral"),
    *("euler-maruyama",),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVEN)
def test_with_a_brownian_path_the_picture_stays_as_steps_grow(name):
    denoiser, most = gaussian(), 256
    times, x = even(Cosine(), most), denoiser.prior(range(32), (1,), torch.float64)
    errors = {}
    for brownian, counts in ((True, (16, 32, 64)), (False, (16, 64))):
        ends = [
            sample(denoiser, named(name, brownian=brownian), x, times[:: most // n], range(32)) for n in (most, *counts)
        ]
        errors[brownian] = [float((end - ends[0]).square().mean().sqrt()) for end in ends[1:]]
    assert all(finer < 0.8 * coarser for coarser, finer in pairwise(errors[True])), errors
    assert errors[False][-1] > 0.7 * errors[False][0] and errors[False][-1] > 5 * errors[True][-1]
