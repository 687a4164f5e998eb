"""What every sampler promises: where it calls the denoiser, where it lands, and that samples do not see each other."""

import copy
import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from undiffuse import InputError
from undiffuse.denoiser import BaseDenoiser, Denoiser
from undiffuse.exact import FiniteData, Mixture
from undiffuse.networks import UNet
from undiffuse.samplers import (
    DDIM,
    LMS,
    Adaptive,
    Ancestral,
    Churn,
    DPMSolver,
    DPMSolverPlusPlus,
    Euler,
    Langevin,
    Restart,
    grid,
    named,
    sample,
    walk,
)  # fmt: skip
from undiffuse.schedule import EDM, Cosine, Flow, Linear, Sigmoid, host, zero_terminal_snr

MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.2]], dtype=torch.float64)
CENTRE = MEANS.mean(0)


def mixture(schedule=None, **options):
    covariances = 0.2 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return Mixture(schedule or Cosine(), torch.ones(3), MEANS, covariances, **options)


class Recorder(BaseDenoiser):
    """Passes every call on and remembers it."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.schedule, self.data_std = denoiser, denoiser.schedule, denoiser.data_std
        self.t_min, self.t_max, self.times, self.estimates = denoiser.t_min, denoiser.t_max, [], []

    def encode(self, condition, drop=None):
        return {}

    def forward(self, x_t, t, condition=None):
        assert not torch.is_grad_enabled()
        self.level(t, len(x_t))
        assert (self.schedule.sigma(t) > 0).all()
        self.times.append(host(t).expand(len(x_t)))
        self.estimates.append(self.denoiser(x_t, t))
        return self.estimates[-1]


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", [Cosine(), Linear(), EDM()], ids=repr)
def test_the_denoiser_is_called_at_the_grid_and_the_last_step_lands_on_its_estimate(any_sampler, schedule, steps):
    denoiser = Recorder(mixture(schedule))
    times = grid.named("log-snr", schedule, steps, denoiser.t_min, 1.0)
    path = list(walk(denoiser, any_sampler, denoiser.prior([1, 2], (2,), torch.float64), times, seeds=[1, 2]))
    assert len(path) == steps
    # loops that stop at the last network time leave noise in the samples
    assert_close(path[-1], denoiser.estimates[-1].x0, rtol=1e-12, atol=1e-12)
    if isinstance(any_sampler, Adaptive):
        return
    called = torch.stack(denoiser.times)
    assert torch.equal(called[:, 0], called[:, 1])
    if not isinstance(any_sampler, Restart):
        assert len(called) == any_sampler.evaluations(steps)
    if isinstance(any_sampler, Churn):  # which stands above the grid, by its noise
        return
    # each level of the grid is called, in order, and stages in between lie within their step
    levels = called[:, 0].tolist()
    assert set(times[:-1].tolist()) <= set(levels)
    if not isinstance(any_sampler, (Restart, Ancestral)):
        assert all(a >= b for a, b in itertools.pairwise(levels))
    if any_sampler.stages == 1 and not isinstance(any_sampler, Restart):
        assert levels == times[:-1].tolist()


@pytest.mark.parametrize("first_order", [DPMSolverPlusPlus(1), DPMSolver(1), LMS(1), Euler("ratio"), DDIM()], ids=repr)
def test_first_order_forms_are_one_and_the_same_step(any_schedule, first_order):
    denoiser = mixture(any_schedule)
    t, s = torch.tensor([0.9037, 0.6, 0.4037]).double(), torch.tensor([0.85, 0.1037, 0.0]).double()
    generator = torch.Generator().manual_seed(0)
    x = any_schedule.sigma(t)[:, None] * torch.randn(3, 2, dtype=torch.float64, generator=generator)
    stepped = sample(denoiser, first_order, x, torch.stack([t, s]))
    estimate = denoiser(x, t)
    ddim = any_schedule.alpha(s)[:, None] * estimate.x0 + any_schedule.sigma(s)[:, None] * estimate.noise
    assert_close(stepped, ddim, rtol=1e-8, atol=1e-8)
    # the noise form, with the signs of docs/mathematics.md section 4
    h = any_schedule.half_log_snr(s[:2]) - any_schedule.half_log_snr(t[:2])
    shrink = any_schedule.alpha(s[:2]) / any_schedule.alpha(t[:2])
    noise_form = shrink[:, None] * x[:2] - (any_schedule.sigma(s[:2]) * torch.expm1(h))[:, None] * estimate.noise[:2]
    assert_close(stepped[:2], noise_form, rtol=1e-8, atol=1e-8)


def test_the_history_is_used_and_comes_newest_first():
    """Midpoint weights are the published ones; exact weights integrate an x0_hat that is linear in lambda exactly."""
    schedule, t = Cosine(), torch.tensor([0.8, 0.7, 0.55]).double()
    levels = schedule.half_log_snr(t)
    h, before = levels[2] - levels[1], levels[1] - levels[0]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c_x, c_now, c_before = DPMSolverPlusPlus(2, "published").coefficients(schedule, t[:, None])[1, :, 0]
    r = before / h
    assert_close(c_x, sigma[2] / sigma[1])
    assert_close(c_now, -alpha[2] * torch.expm1(-h) * (1 + 1 / (2 * r)))
    assert_close(c_before, alpha[2] * torch.expm1(-h) / (2 * r))
    c_x, c_now, c_before = DPMSolverPlusPlus(2, "exact").coefficients(schedule, t[:, None])[1, :, 0]
    fine = torch.linspace(0, 1, 100001, dtype=torch.float64) * h
    for now, earlier, curve in ((1, 1, fine**0), (0, -before, fine)):
        integral = alpha[2] * torch.trapezoid(torch.exp(fine - h) * curve, fine)
        assert_close(c_now * now + c_before * earlier, integral, rtol=1e-8, atol=1e-10)


def refuses_zero_signal(sampler):
    """Those that divide by alpha: the noise form, sigma / alpha for a variable, the SDE in the schedule's time."""
    inner = getattr(sampler, "sampler", sampler)
    return getattr(inner, "form", None) == "noise" or type(inner).__name__ in ("PNDM", "EulerMaruyama")


@pytest.mark.parametrize("schedule", [Flow(), Sigmoid(), zero_terminal_snr(Linear())], ids=lambda s: type(s).__name__)
def test_runs_start_without_any_signal_or_say_that_they_cannot(any_sampler, schedule):
    denoiser = mixture(schedule)
    x = denoiser.prior(range(4), (2,), torch.float64)
    for steps in (1, 2, 3, 10):
        times = grid.named("uniform", schedule, steps, denoiser.t_min, 1.0)
        if refuses_zero_signal(any_sampler) and steps > 1:  # one step is x0_hat, whatever the solver
            with pytest.raises(InputError, match=r"cannot start where alpha = 0 .*earlier time"):
                sample(denoiser, any_sampler, x, times, seeds=range(4))
        else:
            samples = sample(denoiser, any_sampler, x, times, seeds=range(4))
            assert samples.isfinite().all() and samples.abs().max() < 20
            if steps == 1 and not isinstance(
                any_sampler, Adaptive
            ):  # without signal the best estimate is the mean of the data
                assert_close(samples, CENTRE.expand(4, 2))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_end_on_data_that_is_a_point(any_sampler, steps):
    point = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    denoiser = FiniteData(Cosine(), point)
    times = grid.named("log-snr", denoiser.schedule, steps, denoiser.t_min, 1.0)
    samples = sample(denoiser, any_sampler, torch.randn(5, 2, dtype=torch.float64), times, seeds=range(5))
    assert_close(samples, point.expand(5, 2))


def test_samples_of_a_batch_may_walk_grids_of_their_own(any_sampler):
    denoiser, count = mixture(), 5
    x = denoiser.prior(range(count), (2,), torch.float64)
    columns = [grid.named("uniform", denoiser.schedule, 6, 0.02 + 0.01 * i, 0.9 - 0.1 * i) for i in range(count - 1)]
    columns.append(torch.linspace(0.9, 0.3, 7, dtype=torch.float64))  # stops on the way
    together = list(walk(denoiser, any_sampler, x, torch.stack(columns, 1), seeds=range(count)))
    for i, times in enumerate(columns):
        alone = list(walk(denoiser, any_sampler, x[i : i + 1], times, seeds=[i]))
        for whole, one in zip(together, alone, strict=True):
            assert_close(whole[i], one[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_a_sample_is_the_same_in_any_batch_and_order(any_sampler, dtype, tolerance):
    denoiser, seeds = mixture(), torch.arange(16) * 7919
    times = grid.named("log-snr", denoiser.schedule, 10, denoiser.t_min, 1.0)

    def run(seeds):
        samples = sample(denoiser, any_sampler, denoiser.prior(seeds, (2,), dtype), times, seeds)
        assert samples.dtype == dtype
        return samples

    whole = run(seeds)
    for size in (1, 3, 16):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(size))[:size]
        assert_close(run(seeds[order]), whole[order], rtol=tolerance, atol=tolerance)


def test_noise_needs_seeds_one_for_each_sample(any_sampler):
    denoiser, x = mixture(), torch.randn(3, 2)
    times = grid.named("uniform", denoiser.schedule, 4, denoiser.t_min, 1.0)
    if not any_sampler.stochastic:
        without, given = (sample(denoiser, any_sampler, x, times, seeds) for seeds in (None, [1, 2, 3]))
        assert torch.equal(without, given)
        return
    for seeds, message in ((None, "needs seeds"), ([1, 2], "2 seeds were given for 3")):
        with pytest.raises(InputError, match=message):
            sample(denoiser, any_sampler, x, times, seeds)
    one, other = (sample(denoiser, any_sampler, x, times, seeds=[k, k + 1, k + 2]) for k in (0, 10))
    assert not (one == other).any()


def test_grids_that_do_not_fall_or_leave_the_range_are_refused(any_sampler, unchecked):
    denoiser, x = Recorder(mixture(t_min=0.1, t_max=0.9)), torch.zeros(2, 2)
    for times, message in (
        ([0.2, 0.5, 0.4], "fall strictly"),
        ([0.9, 0.5, 0.5, 0.0], "fall strictly"),
        ([1.0, 0.5, 0.0], "knows"),
        ([0.9, 0.05, 0.0], "knows"),
        ([0.9, math.nan, 0.0], "fall strictly"),
        ([0.9], "shape"),
        ([[0.9] * 3, [0.0] * 3], "shape"),
    ):
        with pytest.raises(InputError, match=message):
            next(walk(denoiser, any_sampler, x, torch.tensor(times, dtype=torch.float64), seeds=[0, 1]))
    assert not denoiser.times


def test_a_walk_leaves_the_callers_grad_mode_alone(any_sampler):
    denoiser = mixture()
    times = grid.named("uniform", denoiser.schedule, 4, denoiser.t_min, 1.0)
    x = torch.randn(2, 2, requires_grad=True)
    for preview in walk(denoiser, any_sampler, x, times, seeds=[0, 1]):
        assert torch.is_grad_enabled() and not preview.requires_grad and not preview.is_inference()


def test_names_and_arguments_are_checked(unchecked):
    for arguments, message in (
        ({"name": "dmp++"}, "did you mean 'dpm"),
        ({"name": "ddpm", "variance": "beta-tidle"}, "did you mean 'beta-tilde'"),
        ({"name": "heun", "variable": "angel"}, "did you mean 'angle'"),
        ({"name": "euler", "variable": "ratoi"}, "did you mean 'ratio'"),
        ({"name": "dpm++", "order": 4}, "1, 2, 3"),
        ({"name": "dpm++", "weights": "exakt"}, "did you mean 'exact'"),
        ({"name": "restart:sampler=huen"}, "did you mean 'heun'"),
        ({"name": "ancestral:sampler=dpm++"}, "remembers none"),
        ({"name": "dpm++:eta=-1"}, "eta"),
        ({"name": "ddim", "eta": -0.1}, "eta"),
        ({"name": "ddim", "etta": 0.1}, "did you mean 'eta'"),
        ({"name": "ddim:etta=0.1"}, "did you mean 'eta'"),
        ({"name": "ddim:0.1"}, "name:key=value"),
    ):
        with pytest.raises(InputError, match=message.replace("+", r"\+")):
            named(**arguments)


def test_a_name_may_hold_arguments():
    assert named("ddim:eta=0.5") == DDIM(0.5)
    assert named("dpm++:order=2,weights=exact") == DPMSolverPlusPlus(2, "exact")
    assert named("restart:sampler=(dpm++:order=3,eta=0.5),repeats=4") == Restart(
        DPMSolverPlusPlus(3, eta=0.5), repeats=4
    )
    assert named("langevin:sampler=ancestral") == Langevin(Ancestral())


def test_every_sampler_walks_a_bf16_network(any_sampler):
    """The network computes in bf16, x and the coefficients stay float32: no level is lost to 1 - alpha^2 = 0."""
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1).to(torch.bfloat16)
    denoiser = Denoiser(network, Cosine())
    x = denoiser.prior(range(2), (1, 4, 4))
    times = grid.named("log-snr", Cosine(), 5, denoiser.t_min, 1.0)
    wide = Denoiser(copy.deepcopy(network).float(), Cosine())
    ends = [sample(d, any_sampler, x, times, range(2)) for d in (denoiser, wide)]
    assert ends[0].dtype == torch.float32
    assert ends[0].isfinite().all()
    assert_close(*ends, rtol=0.05, atol=0.05)
