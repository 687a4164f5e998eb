"""Noise that fills the bins of 8-bit values: where it lies, its own density, and what it bounds."""

import math

import pytest
import torch
from torch.distributions import Normal

from undiffuse import InputError
from undiffuse.exact import FiniteData, Gaussian
from undiffuse.likelihood import DEQUANTISATIONS, dequantised, log_prob
from undiffuse.schedule import Cosine

HALF = 1 / 255
NAMES = list(DEQUANTISATIONS)


def values(count, elements=64):
    v = torch.randint(0, 256, (count, elements), generator=torch.Generator().manual_seed(0))
    return v / 127.5 - 1


@pytest.mark.parametrize("name", NAMES)
def test_each_value_stays_in_its_own_bin(name):
    x0 = values(50)
    found = dequantised(x0, torch.arange(50), name, std=0.002)
    assert float((found.x - x0).abs().max()) < HALF * (1 + 1e-4)
    assert abs(float((found.x - x0).double().mean())) < 3 * HALF / math.sqrt(3 * 3200)  # centred


def test_uniform_noise_is_that_of_the_field_but_for_half_a_bin():
    """(v + u - 1/2) / 127.5 - 1, of log-density log(127.5) an element: bits/dim = -log p / (D ln 2) + log2(127.5)."""
    x0 = values(20).double()
    found = dequantised(x0, torch.arange(20), std=0.002)
    u = 127.5 * (found.x + 1) - (127.5 * (x0 + 1)).round() + 0.5
    assert 0 <= float(u.min()) < 0.02 and 0.98 < float(u.max()) <= 1
    assert float((found.bits_per_dim(torch.zeros(20).double()) - math.log2(127.5)).abs().max()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("std", [0.001, 0.004, 0.1])
def test_the_density_of_the_noise_adds_up_to_one(name, std):
    u = (torch.arange(4000).double() + 0.5) / 4000
    noise, log_q = DEQUANTISATIONS[name](u, HALF, std)
    assert bool((noise.diff() > 0).all())
    assert float(torch.trapezoid(log_q.exp(), noise)) == pytest.approx(1, abs=2e-3)
    # u is its distribution function: the density is du / dnoise
    middle = (log_q[1:] + log_q[:-1]) / 2
    assert float(((u.diff() / noise.diff()).log() - middle)[20:-20].abs().max()) < 2e-3


def test_a_draw_belongs_to_its_sample():
    x0, seeds = values(6), torch.tensor([5, 1, 8, 2, 0, 7])
    whole, part = dequantised(x0, seeds, std=0.002), dequantised(x0[2:4], seeds[2:4], std=0.002)
    assert torch.equal(whole.x[2:4], part.x) and torch.equal(whole.log_q[2:4], part.log_q)
    assert not torch.equal(dequantised(x0, seeds + 1, std=0.002).x, whole.x)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_bits_bound_those_of_the_values_and_are_near_where_the_density_is_flat(name):
    """A Gaussian, far wider than a bin: the probability of each value by its distribution function."""
    data = Gaussian(Cosine(), torch.zeros(64).double(), torch.full((64,), 0.09).double())
    x0 = ((data.draw(60, torch.Generator().manual_seed(0)).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    law = Normal(0.0, 0.3)
    true = -(law.cdf(x0 + HALF) - law.cdf(x0 - HALF)).log2().mean(1)
    found = dequantised(x0, torch.arange(60), name, std=0.002)
    gap = found.bits_per_dim(log_prob(data, found.x, exact=False).nats) - true
    error = float(gap.std() / math.sqrt(60))
    assert -3 * error - 1e-3 < float(gap.mean()) < (0.01 if name == "uniform" else 0.4)


def test_where_data_are_points_normal_noise_loses_less():
    """Data of few values, learnt exactly: the model's density at t_min is a comb, and that noise has its shape."""
    points = torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.2, 1.0]]).double()
    points = ((points + 1) * 127.5).round() / 127.5 - 1
    data, seeds = FiniteData(Cosine(), points), torch.arange(30)
    bits = {}
    for name in NAMES:
        found = dequantised(points.repeat(10, 1), seeds, name, std=0.002)
        alpha = float(data.schedule.alpha(data.t_min))
        nats = data.log_prob(alpha * found.x, data.t_min) + 2 * math.log(alpha)
        bits[name] = float(found.bits_per_dim(nats).mean())
    least = math.log2(3) / 2
    assert least - 1e-6 < bits["truncated-normal"] < least + 0.1 < bits["uniform"]


def test_what_is_no_grid_of_values_is_refused():
    with pytest.raises(InputError, match="256 values from -1 to 1"):
        dequantised(torch.full((1, 2), 0.5001), torch.arange(1), std=0.002)
    with pytest.raises(InputError, match="did you mean 'uniform'"):
        dequantised(values(1), torch.arange(1), "unifrom", std=0.002)
