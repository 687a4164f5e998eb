"""Convergence: the declared order between interior levels, and monotone convergence of whole runs down to 0.

In z = x / hypot(alpha, sigma) as a function of lambda the probability flow is the same for every schedule
(docs/mathematics.md section 4), so one tight solution serves all of them.
"""

import math
from itertools import pairwise

import pytest
import torch

from undiffuse.exact import Mixture, solve
from undiffuse.samplers import GRIDS, grid, sample
from undiffuse.schedule import EDM, Cosine, Flow, Linear

STEPS = (32, 64)
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
    levels = sorted({FIRST - j * width / n for n in STEPS for j in (2, 1, 0)} | {LAST})
    schedule = Cosine()
    times = [float(schedule.time(2 * level)) for level in levels]
    solved = solve(mixture(schedule), Z, times[0], times)
    return dict(zip(levels, solved, strict=True))


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_the_order_of_convergence_is_the_declared_one(truth, any_solver, schedule):
    denoiser, errors = mixture(schedule), []
    for n in STEPS:
        h, primed = (LAST - FIRST) / n, any_solver.memory
        levels = [FIRST + k * h for k in range(-primed, n + 1)]
        times = schedule.time(2 * torch.tensor(levels, dtype=torch.float64))[:, None].expand(-1, len(Z))

        def exact(k, levels=levels, times=times):
            return truth[levels[k]] * scale(schedule, times[k, 0])

        x, state = exact(0), None
        state = any_solver.init(denoiser, x, times)
        for k in range(len(levels) - 1):
            x, state = any_solver.step(denoiser, x, times[k], times[k + 1], state, None)
            if k < primed:  # the history is the exact solution's
                x = exact(k + 1)
        errors.append(float((x - exact(-1)).norm()) / scale(schedule, times[-1, 0]))
    slope = math.log2(errors[0] / errors[1])
    assert slope > any_solver.order - 0.15, f"order {slope:.2f} (errors {errors}), declared {any_solver.order}"


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
    schedule = Cosine()
    denoiser = mixture(schedule, t_min=float(schedule.time(16.0)))
    errors = []
    for steps in (8, 16, 32, 64):
        times = grid.named(name, schedule, steps, denoiser.t_min, 1.0)
        errors.append(float((sample(denoiser, any_solver, Z, times) - end).norm()))
    assert all(finer < coarser for coarser, finer in pairwise(errors)), errors
