"""A learned schedule: monotone whatever its parameters; the bound keeps its mean and comes to its least variance."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, InputError, Objective
from undiffuse.exact import Gaussian
from undiffuse.noise import NoiseSource
from undiffuse.prediction import X0, Level, V
from undiffuse.samplers import DDIM, grid, sample
from undiffuse.schedule import Learned, named

STD = 0.5


def bent(seed=0, strength=3.0, **arguments):
    schedule, generator = Learned(**arguments), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += strength * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return schedule


@pytest.mark.parametrize("seed", range(5))
def test_it_falls_strictly_between_its_ends_whatever_its_parameters(seed):
    schedule = bent(seed, log_snr_max=9.0, log_snr_min=-6.0, first=0.01)
    t = torch.linspace(0, 1, 4001).double()
    log_snr = schedule.log_snr(t).detach()
    assert (log_snr.diff() < 0).all() and log_snr[0] == math.inf
    assert_close(schedule.log_snr(torch.tensor([0.01, 1.0]).double()).detach(), torch.tensor([9.0, -6.0]).double())
    inner = t[1:-1]
    assert_close(schedule.time(log_snr[1:-1]), inner, rtol=0, atol=1e-9)
    slope = torch.autograd.functional.jacobian(lambda v: schedule.log_snr(v).sum(), inner)
    assert_close(schedule.log_snr_dot(inner).detach(), slope, rtol=1e-8, atol=1e-8)


def test_levels_stay_float64_on_the_host_when_the_denoiser_is_moved():
    denoiser = Denoiser(nn.Linear(1, 1), named("learned"), "v").half()
    assert denoiser.network.weight.dtype == torch.float16
    assert all(parameter.dtype == torch.float64 for parameter in denoiser.schedule.parameters())
    assert {"schedule.slope", "schedule.heights"} <= denoiser.state_dict().keys()


@pytest.mark.parametrize(
    "arguments", [{"first": 0.0}, {"features": 0}, {"log_snr_min": 20.0}, {"log_snr_min": -math.inf}]
)
def test_what_makes_no_schedule_is_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments)).removesuffix("_min").removesuffix("_max")):
        Learned(**arguments)


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2]).double())

    def forward(self, x, c_noise):
        return self.weight[0] * x + self.weight[1] * c_noise[:, None]


def test_in_one_backward_pass_the_network_descends_the_mean_and_the_schedule_the_variance():
    denoiser = Denoiser(Affine(), bent(strength=0.3, features=4), V(label="log-snr"))
    source = NoiseSource(range(16), (1,), dtype=torch.float64)
    x0, objective = STD * source.normal("probe"), Objective("bound", "stratified")
    draws = objective.draw(denoiser, source)
    objective(denoiser, x0, draws=draws).mean().backward()

    def losses():
        """The bound by hand, through which everything is differentiated as it stands."""
        schedule = denoiser.schedule
        level = Level(schedule, draws.t)
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        x_t = alpha * x0 + sigma * draws.noise
        noise_hat = sigma * x_t + alpha * denoiser.network(x_t, -level.log_snr / 8)
        rate = -0.5 * schedule.log_snr_dot(draws.t) * (1 - denoiser.t_min)
        return rate * (noise_hat - draws.noise)[:, 0].square()

    assert_close(losses(), objective(denoiser, x0, draws=draws))
    network, schedule = [*denoiser.network.parameters()], [*denoiser.schedule.parameters()]
    for parameter, expected in zip(network, torch.autograd.grad(losses().mean(), network), strict=True):
        assert_close(parameter.grad, expected)
    for parameter, expected in zip(schedule, torch.autograd.grad(losses().square().mean(), schedule), strict=True):
        assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-10)
        assert parameter.grad.abs().max() > 0


class Exact(nn.Module):
    """E[x_0 | x_t] of Gaussian data from the log-SNR it is told."""

    def forward(self, x, c_noise):
        log_snr = (-8 * c_noise)[:, None]
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x


def exact_denoiser(schedule):
    return Denoiser(Exact(), schedule, X0(label="log-snr"))


def moments(schedule, count=100_000):
    """Mean and mean square of the bound's estimate from one draw."""
    denoiser, objective = exact_denoiser(schedule), Objective("bound", "stratified")
    source = NoiseSource(range(count), (1,), dtype=torch.float64)
    with torch.no_grad():
        loss = objective(denoiser, STD * source.normal("probe"), draws=objective.draw(denoiser, source))
    return float(loss.mean()), float(loss.square().mean())


def test_training_it_takes_the_variance_and_leaves_the_mean():
    """The least mean square there is, by Cauchy and Schwarz: (Int sqrt(3) / 2 snr Var[x_0 | x_t] d log_snr)^2."""
    ends = {"log_snr_max": 8.0, "log_snr_min": -6.0}
    before = moments(Learned(**ends))
    schedule = Learned(**ends)
    denoiser, objective = exact_denoiser(schedule), Objective("bound", "stratified")
    optimizer = torch.optim.Adam(schedule.parameters(), 0.05)
    for k in range(300):
        source = NoiseSource(range(256 * k, 256 * k + 256), (1,), dtype=torch.float64)
        optimizer.zero_grad()
        objective(denoiser, STD * source.normal("probe"), draws=objective.draw(denoiser, source)).mean().backward()
        optimizer.step()
    after = moments(schedule)
    log_snr = torch.linspace(-6, 8, 20001).double()
    variance = STD**2 / (log_snr.exp() * STD**2 + 1)  # Var[x_0 | x_t]
    mean = float(torch.trapezoid(0.5 * log_snr.exp() * variance, log_snr))
    # the error of x_0 is Gaussian, so its mean fourth power is three squared variances
    least = 3 * mean**2
    assert after[0] == pytest.approx(mean, rel=0.015) and before[0] == pytest.approx(mean, rel=0.015)
    assert before[1] > 1.2 * least and after[1] == pytest.approx(least, rel=0.1)


def test_it_is_sampled_from_as_any_schedule():
    schedule = bent(strength=1.0)
    data = Gaussian(schedule, torch.tensor([0.3]).double(), torch.tensor([[STD**2]]).double())
    times = grid.named("log-snr", schedule, 200, data.t_min, 1.0)
    x = torch.linspace(-2, 2, 7).double()[:, None]
    truth = data.transport(x, 1.0, data.t_min).detach()
    assert_close(sample(data, DDIM(), x, times).detach(), truth, rtol=0, atol=0.02)
