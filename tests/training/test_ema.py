"""The power-function average of the weights (Karras et al. 2024)."""

import pytest
import torch
from torch import nn

from undiffuse import InputError
from undiffuse.training import ema


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 0.25])
def test_the_exponent_gives_the_weighting_its_relative_width(width):
    t = torch.linspace(0, 1, 200001, dtype=torch.float64)
    weight = t ** ema.exponent(width)
    weight = weight / torch.trapezoid(weight, t)
    mean = torch.trapezoid(weight * t, t)
    assert abs(float(torch.trapezoid(weight * (t - mean) ** 2, t).sqrt()) - width) < 1e-5


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3])
def test_widths_that_no_power_has_are_refused(width):
    with pytest.raises(InputError, match=str(width)):
        ema.exponent(width)


def number(value):
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, value)
    module.register_buffer("count", torch.tensor(value))
    return module


def test_the_average_is_the_weighted_sum_of_all_weights_so_far():
    """Weights w_k count as the integral of t^gamma over ((k - 1) / n, k / n), whatever stood there at the start."""
    average, values, power = number(1e6), [3.0, -1.0, 4.0, 1.0, -5.0, 9.0], ema.exponent(0.1) + 1
    for step, value in enumerate(values, start=1):
        ema.update(average, number(value), step, 0.1)
        share = [(k / step) ** power - ((k - 1) / step) ** power for k in range(1, step + 1)]
        expected = sum(w * v for w, v in zip(share, values, strict=False))
        assert abs(float(average.weight.detach()) - expected) < 1e-9
        assert average.count == value  # buffers are not averaged


def test_the_first_step_copies_and_constant_weights_stay():
    average, current = nn.Linear(5, 3), nn.Linear(5, 3)
    ema.update(average, current, 1, 0.05)
    for step in range(2, 50):
        assert all(torch.equal(a, b) for a, b in zip(average.parameters(), current.parameters(), strict=True))
        ema.update(average, current, step, 0.05)
    assert all(p.grad is None and p.requires_grad for p in average.parameters())
