"""Inversion: the exact noise in the limit, a measured round trip that falls with the steps, and refusals."""

import pytest
import torch

from undiffuse import InputError, editing
from undiffuse.exact import Gaussian
from undiffuse.samplers import DDIM, DDPM, Adams, grid, named, sample
from undiffuse.schedule import Cosine

SCHEDULE = Cosine()
GAUSSIAN = Gaussian(
    SCHEDULE, torch.tensor([0.5, -0.3]).double(), torch.diag(torch.tensor([0.3, 0.05]).double()), t_max=0.98
)
X0 = torch.tensor([[0.8, -0.1], [0.1, -0.5], [0.5, -0.3]], dtype=torch.float64)


def times(steps):
    return grid.named("angle", SCHEDULE, steps, GAUSSIAN.t_min, GAUSSIAN.t_max)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm++", "adams", "unipc", "dpm-single", "DPM++ 2M"])
def test_the_noise_is_that_of_the_exact_flow_and_the_round_trip_closes(name):
    errors, trips = [], []
    for steps in (20, 80):
        found = editing.invert(GAUSSIAN, named(name), X0, times(steps))
        exact = GAUSSIAN.transport(X0, GAUSSIAN.t_min, GAUSSIAN.t_max)
        errors.append(float((found.noise - exact).abs().max()))
        trips.append(float(found.round_trip.max()))
    assert errors[1] < max(errors[0], 0.02) and errors[1] < 0.05
    assert trips[1] < max(trips[0], 1e-3) and trips[1] < 0.02


def test_the_round_trip_is_what_sampling_back_misses():
    noise, round_trip = editing.invert(GAUSSIAN, DDIM(), X0, times(6))
    back = sample(GAUSSIAN, DDIM(), noise, times(6))
    assert round_trip.shape == (3,)
    assert torch.allclose(round_trip, (back - X0).square().mean(1).sqrt())
    assert float(round_trip.max()) > 1e-3


def test_it_is_the_sampling_code_on_the_reversed_grid():
    assert torch.equal(
        editing.invert(GAUSSIAN, Adams(), X0, times(5)).noise, sample(GAUSSIAN, Adams(), X0, times(5).flip(0))
    )


def test_what_cannot_be_inverted_is_refused():
    with pytest.raises(InputError, match="draws noise"):
        editing.invert(GAUSSIAN, DDPM(), X0, times(5))
    with pytest.raises(InputError, match="falls"):
        editing.invert(GAUSSIAN, DDIM(), X0, times(5).flip(0))
