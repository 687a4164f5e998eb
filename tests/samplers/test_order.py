"""Convergence: the declared order between interior levels, and monotone convergence of whole runs down to 0.

In z = x / hypot(alpha, sigma) as a function of lambda the probability flow is the same for every schedule
(docs/mathematics.md section 4), so one tight solution serves all of them.
"""

import math
from itertools import pairwise

import pytest
import torch

from undiffuse.exact import Mixture, solve
from undiffuse.samplers import GRIDS, Adaptive, grid, sample
from undiffuse.schedule import EDM, Cosine, Flow, Linear

STEPS = (64, 128)
FIRST, LAST = -2.0, 2.0  # lambda; log_snr from -4 to 4
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]], [[0.15, -0.1], [-0.1, 0.2]]])
Z = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def mixture(schedule, t_min=None):
    return Mixture(schedule, torch.tensor([0.3, 0.5, 0.2]), MEANS, COVARIANCES.double(), t_min)


def scale(schedule, t):
    return float(torch.hypot(schedule.alpha(t), schedule.sigma(t)))


@pytest.fixture(scope="module")
def truth():
    """lambda -> exact z, for the path that stands at Z at the earliest level of all; one solution for all runs."""
    width = LAST - FIRST
    levels = sorted({FIRST - j * width / n for n in STEPS for j in (5, 4, 3, 2, 1, 0)} | {LAST})
    schedule = Cosine()
    times = [float(schedule.time(2 * level)) for level in levels]
    solved = solve(mixture(schedule), Z, times[0], times)
    return dict(zip(levels, solved, strict=True))


def error_with_exact_history(truth, sampler, schedule, n):
    """The error at LAST after n steps from FIRST, uniform in lambda, the history primed from the exact solution."""
    denoiser = mixture(schedule)
    h, primed = (LAST - FIRST) / n, sampler.retained
    levels = [FIRST + k * h for k in range(-primed, n + 1)]
    times = schedule.time(2 * torch.tensor(levels, dtype=torch.float64))[:, None].expand(-1, len(Z))

    def exact(k):
        return truth[levels[k]] * scale(schedule, times[k, 0])

    x = exact(0)
    state = sampler.init(denoiser, x, times)
    for k in range(len(levels) - 1):
        if k <= primed:
            x = exact(k)
            if getattr(sampler, "corrects", False) and k:
                state = state._replace(history=(exact(k - 1), *state.history[1:]))
        x, state = sampler.step(denoiser, x, times[k], times[k + 1], state, None)
    return float((x - exact(-1)).norm()) / scale(schedule, times[-1, 0])


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_the_order_of_convergence_is_the_declared_one(truth, any_solver, schedule):
    if isinstance(any_solver, Adaptive):
        pytest.skip("chooses its steps itself: tests/samplers/test_adaptive.py")
    errors = [error_with_exact_history(truth, any_solver, schedule, n) for n in STEPS]
    slope = math.log2(errors[0] / errors[1])
    declared = any_solver.convergence_order
    assert abs(slope - declared) < 0.17, f"order {slope:.2f} (errors {errors}), declared {declared}"


@pytest.fixture(scope="module")
def end():
    """Where the exact path from Z at Cosine's t = 1 ends."""
    schedule = Cosine()
    tiny = float(schedule.time(24.0))
    denoiser = mixture(schedule)
    return denoiser(solve(denoiser, Z, 1.0, tiny), tiny).x0


@pytest.mark.parametrize("name", ["uniform", "log-snr", "karras"])
def test_whole_runs_converge_monotonically(end, any_solver, name):
    assert name in GRIDS
    if isinstance(any_solver, Adaptive):
        pytest.skip("chooses its steps itself: tests/samplers/test_adaptive.py")
    schedule = Cosine()
    denoiser = mixture(schedule, t_min=float(schedule.time(16.0)))
    errors = []
    for steps in (8, 16, 32, 64):
        times = grid.named(name, schedule, steps, denoiser.t_min, 1.0)
        errors.append(float((sample(denoiser, any_solver, Z, times) - end).norm()))
    assert all(finer < coarser for coarser, finer in pairwise(errors)), errors
