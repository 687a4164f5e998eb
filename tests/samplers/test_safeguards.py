"""What must not come back: stale levels, noise drawn twice, and increments that are too small."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from undiffuse import InputError
from undiffuse.exact import Gaussian
from undiffuse.noise import NoiseSource
from undiffuse.samplers import DDPM, Ancestral, Churn, Langevin, Restart, grid, named, sample
from undiffuse.schedule import Cosine, Flow, Linear


def gaussian(schedule):
    return Gaussian(schedule, torch.zeros(2).double(), torch.eye(2).double())


def test_kept_levels_follow_the_schedule_and_do_not_travel():
    denoiser = gaussian(Cosine())
    with torch.no_grad():
        denoiser.level(0.5, 1)
        assert denoiser._levels and denoiser.level(0.5, 1) is denoiser.level(0.5, 1)
        for other in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):
            assert "_levels" not in vars(other)
        denoiser.schedule = Flow()
        assert_close(denoiser.level(0.5, 1).alpha, torch.tensor([0.5]).double())


def test_levels_of_inference_mode_are_not_kept():
    denoiser = gaussian(Cosine())
    with torch.inference_mode():
        denoiser.level(0.5, 1)
    assert not denoiser.level(0.5, 1).alpha.is_inference()


@pytest.mark.parametrize("width", [0.1, 0.02, 0.005, 0.001])
def test_small_brownian_increments_are_standard_normal_wherever_they_start(width):
    source = NoiseSource(range(4000), (1,), dtype=torch.float64)
    for start in (-3.0, 0.01, 0.0313, 2.7):
        begin = torch.full((4000,), start).double()
        drawn = source.brownian(begin, begin + width)
        assert abs(float(drawn.var()) - 1) < 5 * (2 / 4000) ** 0.5
    with pytest.raises(InputError, match="known down to steps"):
        source.brownian(begin, begin + 1e-5)


def test_wrappers_that_would_draw_the_same_noise_twice_are_refused():
    for make in (
        lambda: Churn(Churn()),
        lambda: Langevin(Langevin()),
        lambda: Churn(DDPM(brownian=True)),
        lambda: Churn(Restart()),
        lambda: Ancestral(named("adaptive")),
    ):
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize("number", [0, 4096])
def test_branches_out_of_range_are_refused(number):
    with pytest.raises(InputError, match="4096"):
        NoiseSource([1], (1,)).branch(number)


def test_ancestral_steps_say_before_the_walk_that_they_would_leave_the_range():
    denoiser = gaussian(Linear())
    denoiser.level = None  # not called: the refusal comes first
    times = grid.named("karras", Linear(), 8, 1 / 1000, 1.0)[:, None]
    with pytest.raises(InputError, match="would call the denoiser"):
        named("ancestral:sampler=heun").init(denoiser, torch.zeros(1, 2).double(), times)


def test_half_precision_samples_are_walked_in_float32():
    denoiser, times = gaussian(Cosine()), grid.named("log-snr", Cosine(), 5, 0.01, 1.0)
    x = torch.randn(3, 2, dtype=torch.bfloat16)
    assert torch.equal(sample(denoiser, named("heun"), x, times), sample(denoiser, named("heun"), x.float(), times))
