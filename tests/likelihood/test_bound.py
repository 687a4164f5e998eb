"""The bounds by their terms: a chain of steps, in all or in part, and its limit in continuous time."""

import functools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.exact import Gaussian, Mixture
from undiffuse.likelihood import discrete_bound, log_prob, variational_bound
from undiffuse.networks import MLP
from undiffuse.noise import NoiseSource
from undiffuse.objective import Draws, VariationalBound
from undiffuse.schedule import Cosine, CosineTable, VariancePreserving
from undiffuse.transition import discretised_gaussian_log_prob, posterior

STD, DIM = 0.6, 50


def gaussian(schedule, dimensions=DIM, **ends):
    return Gaussian(schedule, torch.zeros(dimensions).double(), torch.full((dimensions,), STD**2).double(), **ends)


def draws_of(count, dimensions=DIM):
    return STD * NoiseSource(range(count), (dimensions,), dtype=torch.float64).normal("probe")


def by_hand(denoiser, x0, steps):
    """L_t of each step of a chain, (B, steps - 1), from the noise to the data: Gaussians' divergences written out."""
    schedule, source = denoiser.schedule, NoiseSource(range(len(x0)), x0.shape[1:], dtype=x0.dtype)
    ends = schedule.log_snr(torch.tensor([denoiser.t_min, denoiser.t_max]).double())
    times = schedule.time(torch.linspace(float(ends[0]), float(ends[1]), steps).double())
    if schedule.length:
        times = torch.arange(1, schedule.length + 1).double() / schedule.length
    terms = []
    for k in reversed(range(len(times) - 1)):
        t, s = (times[i].expand(len(x0)) for i in (k + 1, k))
        x_t = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * source.normal("noise", k)
        of_x, of_x0, variance = (value[:, None] for value in posterior(schedule, t, s))
        law = lambda x, a=of_x, b=of_x0, c=variance, d=x_t: Normal(a * d + b * x, c.sqrt())  # noqa: E731
        terms.append(kl_divergence(law(x0), law(denoiser(x_t, t).x0)).mean(1))
    return torch.stack(terms, 1)


@pytest.mark.parametrize("schedule", [Cosine(), VariancePreserving(), CosineTable(40)], ids=["cosine", "vp", "table"])
def test_each_term_is_the_divergence_of_its_step(schedule):
    denoiser, x0 = gaussian(schedule), draws_of(4)
    bound = discrete_bound(denoiser, x0, range(4), steps=25, levels=None)
    assert_close(bound.by_level, by_hand(denoiser, x0, 25), rtol=1e-5, atol=1e-7)
    assert bool((bound.log_snr.diff(dim=1) > 0).all())
    assert_close(bound.total, bound.prior + bound.by_level.sum(1) + bound.reconstruction)


def test_the_terms_are_those_of_the_objective_whose_mean_over_a_table_is_their_sum():
    torch.manual_seed(0)
    network = MLP(DIM, width=16, depth=1, learned_variance=True).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser, x0 = Denoiser(network, CosineTable(20), "v"), draws_of(3)
    bound = discrete_bound(denoiser, x0, range(3), levels=None)
    source, total = NoiseSource(range(3), (DIM,), dtype=torch.float64), torch.zeros(3).double()
    for i in range(20):  # its first step decodes, with the noise of the last draw
        t = torch.full((3,), (i + 1) / 20).double()
        draws = Draws(t, source.normal("noise", i - 1 if i else 19), t > 2)
        total += VariationalBound("table", levels=None)(denoiser, x0, draws=draws).detach() / 20
    assert_close(total, bound.by_level.sum(1) + bound.reconstruction, rtol=1e-6, atol=1e-9)


def test_without_a_table_the_last_step_is_that_of_the_continuous_bound():
    denoiser, x0 = gaussian(Cosine()), draws_of(4)
    ours = discrete_bound(denoiser, x0, range(4), steps=30, draws=16, levels=None)
    assert_close(
        ours.reconstruction, variational_bound(denoiser, x0, range(4), levels=None).reconstruction, rtol=1e-4, atol=1e-4
    )
    assert_close(ours.prior, variational_bound(denoiser, x0, range(4)).prior)


@pytest.mark.parametrize("schedule", [Cosine(), CosineTable(41)], ids=["cosine", "table"])
def test_a_part_of_the_steps_stands_for_all(schedule):
    denoiser, x0 = gaussian(schedule), draws_of(400)
    part, whole = (discrete_bound(denoiser, x0, range(400), steps=41, draws=draws, levels=None) for draws in (8, None))
    gap = part.diffusion - whole.diffusion
    assert part.by_level.shape == (400, 8) and whole.by_level.shape == (400, 40)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 20


def test_many_steps_come_to_the_bound_of_continuous_time():
    """From above: each step loses something that an infinite number does not."""
    denoiser, x0 = gaussian(VariancePreserving(), t_min=0.05), draws_of(300)
    limit = variational_bound(denoiser, x0, range(300), draws=100, levels=None)
    gaps = []
    for steps in (20, 80, 160):
        found = discrete_bound(denoiser, x0, range(300), steps=steps, draws=min(steps - 1, 60), levels=None)
        gaps.append(float((found.diffusion - limit.diffusion).mean()))
    noise = 4 * float(limit.diffusion.std()) / math.sqrt(300) * 0.3
    assert gaps[0] > gaps[1] > -noise and abs(gaps[2]) < 0.6 * gaps[1] + noise
    assert 3 < gaps[0] / gaps[1] < 6  # as 1 / steps, or faster


def test_the_bounds_are_above_what_the_ode_gives_in_the_mean_for_exact_denoisers():
    weights, means = torch.tensor([0.5, 0.5]).double(), torch.tensor([[0.6, 0.6], [-0.6, -0.6]]).double()
    data = Mixture(Cosine(), weights, means, torch.full((2, 2), 0.04).double())
    x0 = data.draw(150, torch.Generator().manual_seed(0))
    ode = -log_prob(data, x0).nats_per_dim
    for bound in (
        variational_bound(data, x0, range(150), draws=64, levels=None),
        discrete_bound(data, x0, range(150), steps=100, draws=50, levels=None),
    ):
        gap = bound.total - ode
        assert float(gap.mean()) > -2 * float(gap.std()) / math.sqrt(150)
    assert float(gap.mean()) > 0.05  # of a hundred steps


@pytest.mark.parametrize("std", [1e-4, 2e-3, 0.05, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, 0.123, 0.99, 2.0])
def test_the_decoder_gives_its_256_values_a_probability_of_one(std, mean):
    values = torch.arange(256).double() / 127.5 - 1
    log_prob_of = discretised_gaussian_log_prob(values, torch.full((256,), mean).double(), torch.tensor(std).log())
    assert float(log_prob_of.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_networks_are_measured_in_eval_mode_and_full_precision():
    denoiser = Denoiser(MLP(2, width=8, depth=1, dropout=0.5), Cosine(), "v", precision=torch.bfloat16).train()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x0 = torch.randn(3, 2)
    for bound in (variational_bound, functools.partial(discrete_bound, steps=20)):
        assert torch.equal(bound(denoiser, x0, range(3)).total, bound(denoiser, x0, range(3)).total)
    assert denoiser.training and denoiser.precision is torch.bfloat16


def test_what_is_no_chain_is_refused():
    denoiser, x0 = gaussian(Cosine()), draws_of(2)
    with pytest.raises(InputError, match="2 steps or more, not 1"):
        discrete_bound(denoiser, x0, range(2), steps=1)
    with pytest.raises(InputError, match="draws=10 is more"):
        discrete_bound(denoiser, x0, range(2), steps=10, draws=10)
    with pytest.raises(InputError, match="1 draw or more, not 0"):
        discrete_bound(denoiser, x0, range(2), draws=0)
    with pytest.raises(InputError, match="3 seeds were given for 2 samples"):
        discrete_bound(denoiser, x0, range(3))
