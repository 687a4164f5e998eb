"""Conversions between predictions: round trips to the ends of time, and the closed forms of the literature."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, Estimate, InputError
from undiffuse.prediction import NOISE_LABELS, PREDICTIONS, Level, flow_of, named, noise_of, score_of, v_of, x0_of
from undiffuse.schedule import (
    EDM,
    Cosine,
    Flow,
    Linear,
    Schedule,
    Sigmoid,
    SubVariancePreserving,
    VariancePreserving,
    zero_terminal_snr,
)


@dataclass(frozen=True)
class Ramp(Schedule):
    """log_snr from 30 to -30, on another schedule's rule for the scales."""

    family: Schedule

    def log_snr(self, t):
        return 30 - 60 * torch.as_tensor(t, dtype=torch.float64)

    def _time(self, log_snr):
        return (30 - log_snr) / 60

    def scales(self, log_snr):
        return self.family.scales(log_snr)


FAMILIES = [Ramp(family) for family in (Cosine(), EDM(), Flow(), SubVariancePreserving())]
TIMES = torch.linspace(0, 1, 41, dtype=torch.float64)
WANTED = {"x0": x0_of, "noise": noise_of, "v": v_of, "score": score_of, "flow": flow_of}


def unknowns(level):
    """(x_0, noise, x_t): random x_0 and noise of shape (B, 5) and what they make, float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(level.t), 5, dtype=torch.float64, generator=generator)
    return x0, noise, level.alpha[:, None] * x0 + level.sigma[:, None] * noise


@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda s: type(s.family).__name__)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_round_trips_hold_from_log_snr_30_to_minus_30(predicts, schedule):
    level = Level(schedule, TIMES)
    x0, noise, x_t = unknowns(level)
    a, b = named(predicts).target(level)
    estimate = Estimate(x_t, a[:, None] * x0 + b[:, None] * noise, level, named(predicts).target)
    for name, of in WANTED.items():
        a, b = of(level)
        expected, scale = a[:, None] * x0 + b[:, None] * noise, (a.abs() + b.abs())[:, None]
        assert_close(getattr(estimate, name) / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("predicts", "wanted", "bound"),
    [
        ("noise", "x0", lambda level, x0, noise, x: (x + level.sigma[:, None] * noise) / level.alpha[:, None]),
        ("x0", "noise", lambda level, x0, noise, x: (x + level.alpha[:, None] * x0) / level.sigma[:, None]),
        ("v", "x0", lambda level, x0, noise, x: x0 + noise),
        ("v", "noise", lambda level, x0, noise, x: x0 + noise),
        ("edm", "x0", lambda level, x0, noise, x: 2 * (x0 + noise)),
    ],
)
def test_in_float32_the_error_is_a_few_ulp_of_what_is_well_posed(predicts, wanted, bound):
    level = Level(FAMILIES[0], TIMES)
    x0, noise, x_t = unknowns(level)
    a, b = named(predicts).target(level)
    estimate = Estimate(x_t.float(), (a[:, None] * x0 + b[:, None] * noise).float(), level, named(predicts).target)
    given = getattr(estimate, wanted)
    assert given.dtype == torch.float32
    error = (given.double() - (x0 if wanted == "x0" else noise)).abs()
    assert (error <= 3 * torch.finfo(torch.float32).eps * bound(level, x0.abs(), noise.abs(), x_t.abs())).all()


def closed_forms(level, sd=0.5):
    """{prediction: (c_skip, c_out)} of x_0 = c_skip x_t + c_out F, as the literature writes them."""
    alpha, sigma = level.alpha, level.sigma
    total, variance = alpha**2 + sigma**2, sigma**2 + alpha**2 * sd**2
    determinant = level.sigma_dot * alpha - level.alpha_dot * sigma
    return {
        "noise": (1 / alpha, -sigma / alpha),
        "x0": (0 * alpha, alpha**0),
        "v": (alpha / total, -sigma / total),
        "score": (1 / alpha, sigma**2 / alpha),
        "flow": (level.sigma_dot / determinant, -sigma / determinant),
        "edm": (alpha * sd**2 / variance, sigma * sd / variance.sqrt()),
    }


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_closed_forms(any_schedule, predicts):
    level = Level(any_schedule, torch.tensor([0.0837, 0.3037, 0.5037, 0.9037]).double())
    c_skip, c_out = closed_forms(level)[predicts]
    assert_close(named(predicts).c_skip(level), c_skip, rtol=1e-9, atol=1e-12)
    assert_close(named(predicts).c_out(level), c_out, rtol=1e-9, atol=1e-12)


def test_the_rectified_flow_is_noise_minus_data():
    a, b = flow_of(Level(Flow(), torch.tensor([0.001, 0.5, 1.0])))
    assert (a == -1).all() and (b == 1).all()


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_edm_makes_input_and_target_of_unit_variance(any_schedule, sd):
    level, edm = Level(any_schedule, torch.tensor([0.2037, 0.7037]).double()), named("edm", data_std=sd)
    variance = level.alpha**2 * sd**2 + level.sigma**2
    assert_close(edm.c_in(level), variance.rsqrt())
    a, b = edm.target(level)
    assert_close(a**2 * sd**2 + b**2, torch.ones_like(a))
    # and uncorrelated with the input, so that the network's zero is the best linear estimate
    assert_close(level.alpha * a * sd**2 + level.sigma * b, torch.zeros_like(a), rtol=0, atol=1e-9)


def test_noise_labels_are_those_of_the_literature():
    assert set(NOISE_LABELS) == {"time", "step", "log-snr"}
    t = torch.arange(1, 1001).double() / 1000
    assert_close(named("noise", label="step").c_noise(Level(Linear(), t)), torch.arange(1000).double())
    assert_close(named("v").c_noise(Level(Cosine(), t)), 1000 * t)
    assert_close(named("edm").c_noise(Level(EDM(), t)), torch.log(80 * t) / 4)
    assert_close(named("v", label="log-snr").c_noise(Level(Flow(), t)).max(), torch.tensor(30 / 8).double())
    with pytest.raises(InputError, match="table"):
        Denoiser(nn.Identity(), Cosine(), named("noise", label="step"))
    with pytest.raises(InputError, match="log-snr"):
        named("noise", label="logsnr")


@pytest.mark.parametrize("schedule", [Flow(), Sigmoid(), zero_terminal_snr(Linear())], ids=repr)
def test_noise_and_score_refuse_a_range_that_reaches_alpha_zero(schedule):
    for predicts in ("noise", "score"):
        with pytest.raises(InputError, match=r"alpha reaches 0.*v, x0 or edm .*, or t_max < 1"):
            Denoiser(nn.Identity(), schedule, predicts)
        Denoiser(nn.Identity(), schedule, predicts, t_max=0.99)
    for predicts in ("v", "x0", "edm"):
        Denoiser(nn.Identity(), schedule, predicts)
    Denoiser(nn.Identity(), Flow(), "flow")


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_prediction_stands_a_schedule_that_keeps_some_signal(predicts):
    Denoiser(nn.Identity(), Cosine(), predicts)
    Denoiser(nn.Identity(), VariancePreserving(), predicts)


class Half(nn.Module):
    """A network in bfloat16 that remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def forward(self, x, c_noise):
        self.seen = x.dtype, c_noise.dtype
        return self.weight * x


def test_a_bfloat16_network_meets_the_schedule_in_float32():
    x_t, schedule = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)), Linear()
    denoiser = Denoiser(Half(), schedule, "v")
    estimate = denoiser(x_t, 1 / 1000)
    assert denoiser.network.seen == (torch.bfloat16, torch.float32)
    assert torch.equal(estimate.x_t, x_t) and estimate.x0.dtype == torch.float32
    # with v = 0 the noise is sigma x_t: sigma = 0.01 survives, which 1 - alpha^2 in bfloat16 would not
    assert math.isclose(float(schedule.sigma(1 / 1000)), 0.01, rel_tol=1e-6)
    assert_close(estimate.noise, 0.01 * x_t, rtol=1e-6, atol=0)
    assert denoiser(x_t.to(torch.bfloat16), 0.5).x0.dtype == torch.float32
