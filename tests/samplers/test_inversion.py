"""Rising grids: the same steps lead from data to noise, and back."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from undiffuse import InputError
from undiffuse.exact import Gaussian, Mixture, solve
from undiffuse.samplers import PNDM, Adaptive, grid, named, sample, walk
from undiffuse.schedule import EDM, Cosine, Flow, Linear

LAST = 0.9
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.2]], dtype=torch.float64)
X = MEANS.repeat(2, 1) + 0.3 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def mixture(schedule=None):
    covariances = 0.2 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return Mixture(schedule or Cosine(), torch.ones(3), MEANS, covariances)


@pytest.fixture(scope="module")
def truth():
    denoiser = mixture()
    start = denoiser.schedule.alpha(denoiser.t_min) * X
    return start, solve(denoiser, start, denoiser.t_min, LAST)


def test_inversion_converges_to_the_exact_solution_and_sampling_leads_back(truth, any_solver):
    start, end = truth
    denoiser = mixture()
    up_errors, back_errors = [], []
    counts = (2,) if isinstance(any_solver, Adaptive) else (12, 24, 48)
    for count in counts:
        falling = grid.named("log-snr", denoiser.schedule, count, denoiser.t_min, LAST)[:-1]
        up = sample(denoiser, any_solver, start, falling.flip(0))
        back = sample(denoiser, any_solver, up, falling)
        up_errors.append(float((up - end).norm()))
        back_errors.append(float((back - start).norm()))
    if isinstance(any_solver, Adaptive):
        assert max(*up_errors, *back_errors) < 1e-3
        return
    for errors in (up_errors, back_errors):
        assert all(finer < 0.75 * coarser for coarser, finer in pairwise(errors)), (up_errors, back_errors)


@pytest.mark.parametrize("schedule", [Linear(), EDM(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["ddim", "dpm++", "dpm++-single", "adams", "unipc", "heun", "pndm", "deis"])
def test_data_returns_on_every_schedule(name, schedule):
    denoiser, errors = mixture(schedule), []
    for count in (16, 64):
        falling = grid.named("log-snr", schedule, count, denoiser.t_min, LAST)
        up = sample(denoiser, named(name), X, falling.flip(0))
        errors.append(float((sample(denoiser, named(name), up, falling) - X).norm()))
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.5, errors


def test_gaussian_data_returns_from_one_angle_to_the_other():
    """To second order, with the closed form of the way."""
    denoiser = Gaussian(Cosine(), torch.tensor([0.7], dtype=torch.float64), torch.tensor([[0.36]], dtype=torch.float64))
    x, errors = torch.tensor([[0.1], [1.4]], dtype=torch.float64), []
    for count in (20, 40):
        rising = torch.linspace(0.1, LAST, count + 1, dtype=torch.float64)
        errors.append(float((sample(denoiser, named("heun"), x, rising) - denoiser.transport(x, 0.1, LAST)).norm()))
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.2


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_a_grid_from_0_starts_with_the_noise_seen_at_t_min(any_solver, schedule):
    denoiser = mixture(schedule)
    t_min = denoiser.t_min
    times = torch.tensor([0.0, t_min, 0.3], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t_min), schedule.sigma(t_min)
    first, second = walk(denoiser, any_solver, X, times)
    assert_close(first, alpha * X + sigma * denoiser(alpha * X, t_min).noise, rtol=1e-12, atol=1e-12)
    assert_close(second, sample(denoiser, any_solver, first, times[1:]), rtol=1e-12, atol=1e-12)
    assert len(list(walk(denoiser, any_solver, X, times[:2]))) == 1


def test_samplers_that_draw_noise_refuse_rising_grids(any_stochastic):
    with pytest.raises(InputError, match="cannot walk a rising grid: invert with a deterministic one"):
        sample(mixture(), any_stochastic, X, torch.tensor([0.1, 0.5], dtype=torch.float64), range(6))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_inversion_may_rise_to_where_the_signal_ends_in_the_data_and_angle_forms(any_solver, count):
    if getattr(any_solver, "form", None) == "noise" or isinstance(any_solver, PNDM):
        pytest.skip("divides by alpha")
    denoiser = mixture(Flow())
    times = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
    up = sample(denoiser, any_solver, X, times)
    assert up.isfinite().all() and up.abs().max() < 20


def test_samples_rise_on_grids_of_their_own(any_solver):
    denoiser = mixture()
    columns = [torch.linspace(0.02 + 0.01 * i, 0.9 - 0.1 * i, 5, dtype=torch.float64) for i in range(3)]
    together = sample(denoiser, any_solver, X[:3], torch.stack(columns, 1))
    for i, times in enumerate(columns):
        assert_close(together[i : i + 1], sample(denoiser, any_solver, X[i : i + 1], times), rtol=1e-10, atol=1e-10)


def test_rising_grids_from_0_do_so_for_all_samples_or_for_none(unchecked):
    times = torch.tensor([[0.0, 0.1], [0.5, 0.5]], dtype=torch.float64)
    with pytest.raises(InputError, match="start at 0 for all samples or for none"):
        sample(mixture(), named("ddim"), X[:2], times)
