"""Every objective reaches its analytic minimum on Gaussian data, at the analytic network."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, Objective
from undiffuse.noise import NoiseSource
from undiffuse.objective import TIME_LAWS, WEIGHTS, Draws, ImportanceTime, VariationalBound
from undiffuse.prediction import PREDICTIONS, Level, named
from undiffuse.schedule import Cosine

STD = 0.6
TIMES = torch.tensor([0.1, 0.4, 0.8]).double()
# x_0 = +-STD with noise = +-1: the mean over the four is exact for quadratic functions of Gaussians
SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2))).double()
T = TIMES.repeat_interleave(4)
X0, DRAWS = STD * SIGNS[:, :1].repeat(3, 1), Draws(T, SIGNS[:, 1:].repeat(3, 1), T > 2)


class Scaled(nn.Module):
    """F = k x, with a k for each time: on Gaussian data of mean 0 the best network there is."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.full((3, 1), 0.1).double())

    def forward(self, x, c_noise):
        return self.k.repeat_interleave(4, 0) * x


def remaining_variance(schedule, t):
    """Var[x_0 | x_t]."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)


def minimise(loss, parameters):
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-13, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        total = loss()
        total.backward()
        return total

    optimizer.step(closure)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_weight_on_each_prediction_reaches_its_minimum(weight, predicts):
    schedule, prediction, network = Cosine(), named(predicts), Scaled()
    denoiser, objective = Denoiser(network, schedule, prediction), Objective(weight)

    def per_time():
        return objective(denoiser, X0, draws=DRAWS).view(3, 4).mean(1)

    expected = WEIGHTS[weight]()(Level(schedule, TIMES), prediction) * remaining_variance(schedule, TIMES)
    if weight == "bound":
        expected = expected * (1 - denoiser.t_min)
    # each loss beside its own minimum, so that they are of one size
    minimise(lambda: (per_time() / expected).sum(), [network.k])
    assert_close(per_time().detach(), expected, rtol=1e-7, atol=0)
    alpha, sigma = schedule.alpha(TIMES)[:, None], schedule.sigma(TIMES)[:, None]
    level = Level(schedule, TIMES)
    x = torch.ones(3, 1).double()
    best = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)  # E[x_0 | x_t] / x_t
    a, b = (part[:, None] for part in prediction.target(level))
    of_x = (a * best + b * (1 - alpha * best) / sigma) * x / prediction.c_in(level)[:, None]
    assert_close(network.k.detach(), of_x, rtol=1e-5, atol=1e-7)


def test_a_learned_uncertainty_comes_to_the_loss_of_each_level():
    schedule, network = Cosine(), Scaled()
    denoiser, objective = Denoiser(network, schedule, "v"), Objective("edm", uncertainty=True).double()
    plain = Objective("edm")(denoiser, X0, draws=DRAWS).view(3, 4).mean(1).detach()
    network.requires_grad_(False)
    minimise(lambda: objective(denoiser, X0, draws=DRAWS).mean(), [*objective.parameters()])
    u = objective.uncertainty(Level(schedule, TIMES)).detach()
    assert_close(u.exp(), plain, rtol=1e-5, atol=0)
    found = objective(denoiser, X0, draws=DRAWS).view(3, 4).mean(1).detach()
    assert_close(found, 1 + plain.log(), rtol=1e-6, atol=1e-8)


def test_before_it_learns_uncertainty_changes_nothing():
    denoiser = Denoiser(Scaled(), Cosine(), "v")
    losses = [Objective(uncertainty=flag)(denoiser, X0, draws=DRAWS) for flag in (False, True)]
    assert_close(*losses)


def test_the_discrete_bound_reaches_its_minimum_at_the_same_network():
    schedule, network, steps = Cosine(), Scaled(), 40
    denoiser, objective = Denoiser(network, schedule, "v"), VariationalBound(steps=steps, levels=None)

    def per_time():
        return objective(denoiser, X0, draws=DRAWS).view(3, 4).mean(1)

    gain = schedule.log_snr(TIMES - (1 - denoiser.t_min) / steps).exp() - schedule.log_snr(TIMES).exp()
    expected = steps * gain / 2 * remaining_variance(schedule, TIMES)
    minimise(lambda: (per_time() / expected).sum(), [network.k])
    assert_close(per_time().detach(), expected, rtol=1e-7, atol=0)


# -- times ------------------------------------------------------------------------------------------------------------


def taught(loss, **arguments):
    """A law that has seen 200 batches of losses that are a function of time."""
    law = ImportanceTime(**arguments)
    for k in range(200):
        u = NoiseSource(range(64 * k, 64 * k + 64), (), dtype=torch.float64).uniform("time")
        t = law.times(u, Cosine(), 0.01, 1.0)
        law.observe(t, loss(t), 0.01, 1.0)
    return law


QUANTILES = (torch.arange(20000).double() + 0.5) / 20000


def test_importance_sampling_keeps_the_mean_and_takes_the_variance():
    def loss(t):
        return torch.exp(-8 * t) + 0.01

    law = taught(loss)
    assert (law.density > 0).all() and float(law.density.mean()) == pytest.approx(1)
    uniform = loss(TIME_LAWS["uniform"]().times(QUANTILES, Cosine(), 0.01, 1.0))
    t = law.times(QUANTILES.roll(0), Cosine(), 0.01, 1.0)
    drawn = loss(t) * law.correction(t, 0.01, 1.0)
    assert float(drawn.mean()) == pytest.approx(float(uniform.mean()), rel=1e-3)
    assert float(drawn.var()) < 0.02 * float(uniform.var())
    # in proportion to the root mean square within each bin, but for the floor
    edges = 0.01 + 0.99 * (torch.arange(64 * 50).double() + 0.5) / (64 * 50)
    root = loss(edges).view(64, 50).square().mean(1).sqrt()
    assert_close(law.density, 0.95 * root / root.mean() + 0.05, rtol=0.05, atol=0)


def test_a_loss_is_corrected_by_the_law_that_its_times_were_drawn_from():
    """At a step at which the law takes in what it has heard, too."""
    objective = Objective("bound", ImportanceTime(bins=4))
    denoiser = Denoiser(Scaled(), Cosine(), "v")
    for _ in range(2 * ImportanceTime.REFRESH):
        density = objective.times.density.clone()
        corrected = objective(denoiser, X0, draws=DRAWS)
        with torch.no_grad():
            plain = Objective("bound")(denoiser, X0, draws=DRAWS)
        share = ((T - denoiser.t_min) / (1 - denoiser.t_min) * 4).long()
        assert_close(corrected.detach(), plain / density[share])
        objective.times.observe(torch.tensor([0.95]).double(), torch.ones(1), denoiser.t_min, 1.0)  # the last bin
        objective.times.observe(torch.tensor([0.6]).double(), torch.ones(1), denoiser.t_min, 1.0)
    assert float((objective.times.density - 1).abs().max()) > 0.1


def test_until_every_level_was_seen_times_are_uniform():
    law = ImportanceTime(bins=8)
    for _ in range(100):
        law.observe(torch.full((4,), 0.3).double(), torch.ones(4), 0.0, 1.0)
    assert torch.equal(law.density, torch.ones(8).double())
    assert_close(law.times(QUANTILES, Cosine(), 0.0, 1.0), (torch.arange(20000) + QUANTILES) / 20000)


def test_importance_goes_on_bit_for_bit_wherever_it_was_saved():
    def run(stops):
        law = ImportanceTime(bins=4)
        for k in range(70):
            if k in stops:
                saved, law = law.state_dict(), ImportanceTime(bins=4)
                law.load_state_dict(saved)
            t = law.times(NoiseSource(range(k, k + 8), (), dtype=torch.float64).uniform("time"), Cosine(), 0.1, 1.0)
            law.observe(t, (t**2 + 0.1).float(), 0.1, 1.0)
        return law.state_dict()

    whole, stopped = run([]), run([7, 20, 33])
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert float(whole["density"].std()) > 0.1


def test_an_objective_tells_its_law_the_losses_of_training_and_not_of_validation():
    objective = Objective(times=ImportanceTime(bins=2))
    denoiser = Denoiser(Scaled(), Cosine(), "v")
    with torch.no_grad():
        objective(denoiser, X0, draws=DRAWS)
    assert int(objective.times.seen) == 0
    objective(denoiser, X0, draws=DRAWS)
    assert int(objective.times.seen) == 1 and "times.total" in objective.state_dict()
