"""Schedules against their closed forms, their derivatives and their inverses."""

import math

import pytest
import torch
from torch.testing import assert_close

from undiffuse.errors import InputError
from undiffuse.schedule import (
    EDM,
    Cosine,
    CosineTable,
    Flow,
    Linear,
    LogSNRShift,
    ScaledLinear,
    Sigmoid,
    SubVariancePreserving,
    Table,
    VarianceExploding,
    VariancePreserving,
    along_batch,
    host,
    named,
    resolution_shift,
    zero_terminal_snr,
)

INTERIOR = (torch.arange(30, 971, 47, dtype=torch.float64) + 0.37) / 1000  # off the kinks of tables
ALL = torch.cat([torch.tensor([0, 1e-12, 1e-6]).double(), torch.linspace(1e-4, 1, 2049, dtype=torch.float64)])
ZERO_SIGNAL = [Sigmoid(), Flow(), *map(zero_terminal_snr, (Linear(), CosineTable(100), Cosine(), VariancePreserving()))]


def test_ends_are_exact_and_nothing_is_nan(any_schedule):
    assert any_schedule.alpha(0.0) == 1 and any_schedule.sigma(0.0) == 0 and any_schedule.log_snr(0.0) == math.inf
    for values in (any_schedule.alpha(ALL), any_schedule.sigma(ALL)):
        assert values.dtype == torch.float64 and values.isfinite().all() and (values >= 0).all()
    assert not any_schedule.log_snr(ALL).isnan().any()
    assert (any_schedule.log_snr(ALL).diff() < 0).all()


@pytest.mark.parametrize("schedule", ZERO_SIGNAL, ids=repr)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1025,), (2, 8)])
def test_the_signal_ends_at_exactly_zero_whatever_the_shape(schedule, shape):
    t = torch.ones(shape, dtype=torch.float64)
    assert (schedule.alpha(t) == 0).all() and (schedule.sigma(t) == 1).all()
    assert (schedule.log_snr(t) == -math.inf).all()
    assert_close(schedule.time(schedule.log_snr(t)), t)


def test_scales_and_log_snr_agree(any_schedule):
    alpha, sigma = any_schedule.alpha(INTERIOR), any_schedule.sigma(INTERIOR)
    assert_close(any_schedule.log_snr(INTERIOR), 2 * (alpha.log() - sigma.log()), rtol=1e-11, atol=1e-11)
    # lambda is half the log-SNR: without the half, solvers step twice too far
    assert_close(any_schedule.half_log_snr(INTERIOR), torch.log(alpha / sigma), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["alpha", "sigma", "log_snr"])
def test_derivatives_match_central_differences(any_schedule, name):
    value, h = getattr(any_schedule, name), 1e-6
    expected = (value(INTERIOR + h) - value(INTERIOR - h)) / (2 * h)
    assert_close(getattr(any_schedule, name + "_dot")(INTERIOR), expected, rtol=1e-5, atol=1e-7)


def test_derivatives_are_finite_on_the_last_level_where_there_is_signal(any_schedule):
    """Networks are called there: flow prediction and the reverse SDE start from it."""
    if any_schedule.alpha(1.0) > 0:
        for t in (1.0, torch.tensor([0.5, 1.0]).double()):
            for derivative in (any_schedule.alpha_dot(t), any_schedule.sigma_dot(t), any_schedule.log_snr_dot(t)):
                assert derivative.isfinite().all()
        assert any_schedule.log_snr_dot(1.0) < 0


def test_time_inverts_log_snr(any_schedule):
    assert_close(any_schedule.time(any_schedule.log_snr(ALL)), ALL, rtol=1e-7, atol=1e-9)
    inside = any_schedule.log_snr(INTERIOR)
    assert_close(any_schedule.log_snr(any_schedule.time(inside)), inside, rtol=1e-9, atol=1e-9)
    assert any_schedule.time(1e4) == 0


def test_diffusion_is_the_derivative_of_the_noise_variance_minus_the_drift(any_schedule):
    alpha, sigma = any_schedule.alpha(INTERIOR), any_schedule.sigma(INTERIOR)
    alpha_dot, sigma_dot = any_schedule.alpha_dot(INTERIOR), any_schedule.sigma_dot(INTERIOR)
    assert_close(any_schedule.drift(INTERIOR), alpha_dot / alpha, rtol=1e-8, atol=1e-10)
    expected = 2 * sigma * sigma_dot - 2 * alpha_dot / alpha * sigma**2
    assert_close(any_schedule.diffusion_squared(INTERIOR), expected, rtol=1e-7, atol=1e-9)


T = INTERIOR
BETA, INTEGRAL = 0.1 + T * 19.9, 0.1 * T + T**2 * 19.9 / 2
RATE = 2 * math.log(50 / 0.01)
SDE = {
    VariancePreserving(): (-BETA / 2, BETA),
    SubVariancePreserving(): (-BETA / 2, BETA * (1 - torch.exp(-2 * INTEGRAL))),
    VarianceExploding(): (0 * T, 0.01**2 * RATE * torch.exp(RATE * T)),
    EDM(): (0 * T, 2 * 80**2 * T),
    Flow(): (-1 / (1 - T), 2 * T / (1 - T)),
}


@pytest.mark.parametrize("schedule", SDE, ids=repr)
def test_the_sde_has_the_published_coefficients(schedule):
    f, g_squared = SDE[schedule]
    assert_close(schedule.drift(T), f, rtol=1e-7, atol=1e-9)
    assert_close(schedule.diffusion_squared(T), g_squared, rtol=1e-7, atol=1e-9)


ALPHA = torch.exp(-(T**2) * 19.9 / 4 - T * 0.1 / 2)
JABRI = (torch.sigmoid(torch.tensor(3.0)).double() - torch.sigmoid(6 * T - 3)) / math.tanh(1.5)
SCALES = {
    VariancePreserving(): (ALPHA, (1 - ALPHA**2).sqrt()),
    SubVariancePreserving(): (ALPHA, 1 - ALPHA**2),
    VarianceExploding(): (T**0, 0.01 * (5000 ** (2 * T) - 1).sqrt()),
    EDM(): (T**0, 80 * T),
    Flow(): (1 - T, T),
    Sigmoid(): (JABRI.sqrt(), (1 - JABRI).sqrt()),
}


@pytest.mark.parametrize("schedule", SCALES, ids=repr)
def test_scales_have_the_published_form(schedule):
    alpha, sigma = SCALES[schedule]
    assert_close(schedule.alpha(T), alpha, rtol=1e-6, atol=1e-8)
    assert_close(schedule.sigma(T), sigma, rtol=1e-6, atol=1e-8)


def test_continuous_cosine_is_a_cosine_that_stops_at_its_last_log_snr():
    schedule, first = Cosine(), 0.008 / 1.008 * math.pi / 2
    angle = torch.acos(schedule.alpha(T) * math.cos(first))
    slope = (angle[-1] - angle[0]) / (T[-1] - T[0])
    assert_close(angle, first + slope * T, rtol=1e-9, atol=1e-9)
    assert_close(schedule.log_snr(1.0), torch.tensor(-15.0).double())
    assert schedule.log_snr(0.5) > Cosine(offset=0.1).log_snr(0.5)


# -- tables -----------------------------------------------------------------------------------------------------------

COSINE = torch.cos((torch.linspace(0, 1, 1001).double() + 0.008) / 1.008 * math.pi / 2).square()
BETAS = {
    Linear(): torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
    Linear(100): torch.linspace(1e-3, 0.2, 100, dtype=torch.float64),
    ScaledLinear(): torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2,
    CosineTable(): (1 - COSINE[1:] / COSINE[:-1]).clamp(max=0.999),
}


@pytest.mark.parametrize("table", BETAS, ids=repr)
def test_a_table_holds_the_cumulative_product_at_its_steps(table):
    betas = BETAS[table]
    t = torch.arange(1, len(betas) + 1).double() / len(betas)
    assert_close(table.betas, betas, rtol=1e-4, atol=1e-9)
    assert_close(table.alpha(t).square(), torch.cumprod(1 - betas, 0), rtol=1e-4, atol=1e-9)
    assert_close(table.sigma(t).square(), 1 - torch.cumprod(1 - betas, 0), rtol=1e-4, atol=1e-9)
    assert_close(Table.from_betas(table.betas).log_snr(t), table.log_snr(t), rtol=1e-9, atol=1e-9)


QUARTERS = torch.tensor([0, 0.25, 0.5, 1], dtype=torch.float64)


@pytest.mark.parametrize("table", [Linear(), Table((0.9, 0.5, 0.2, 0.01))], ids=["linear", "table"])
def test_between_steps_log_snr_is_linear_and_alpha_bar_is_not(table):
    count = table.length
    left, right = table.log_snr(2 / count), table.log_snr(3 / count)
    assert_close(table.log_snr(2.3 / count), 0.7 * left + 0.3 * right)
    t = QUARTERS / count
    ratio = table.sigma(t) / table.alpha(t)
    assert_close(ratio / ratio[-1], QUARTERS)


def test_where_the_signal_ends_the_last_interval_is_linear_in_alpha_over_sigma():
    table = zero_terminal_snr(Linear())
    t = (999 + QUARTERS) / 1000
    ratio = table.alpha(t) / table.sigma(t)
    assert_close(ratio / ratio[0], 1 - QUARTERS)


@pytest.mark.parametrize("base", [Linear(), ScaledLinear(200), Cosine(), VariancePreserving()], ids=repr)
def test_zero_terminal_snr_shifts_and_scales_alpha(base):
    schedule, first = zero_terminal_snr(base), 1 / base.length if base.length else 0.0
    t = torch.arange(1, 201).double() / 200
    last, kept = base.alpha(1.0), base.alpha(first)
    assert_close(schedule.alpha(t), (base.alpha(t) - last) * kept / (kept - last), rtol=1e-9, atol=1e-12)
    assert_close(schedule.alpha(first), kept)
    assert schedule.alpha(1.0) == 0


@pytest.mark.parametrize("base", [SubVariancePreserving(), VarianceExploding(), EDM(), Flow()], ids=repr)
def test_zero_terminal_snr_is_for_variance_preserving_schedules(base):
    with pytest.raises(InputError, match="variance-preserving"):
        zero_terminal_snr(base)


def test_a_shift_adds_to_the_log_snr_and_keeps_the_rule_of_the_scales():
    shifted = LogSNRShift(Flow(), 2.0)
    assert_close(shifted.log_snr(T), Flow().log_snr(T) + 2)
    assert_close(shifted.alpha(T) + shifted.sigma(T), torch.ones_like(T))
    assert resolution_shift(128) == 2 * math.log(64 / 128)


@pytest.mark.parametrize("steps", [20, 10, 5])
def test_a_table_too_short_for_its_betas_names_the_limit(steps):
    with pytest.raises(InputError, match="more than 20 steps"):
        Linear(steps)
    assert Linear(21).log_snr(1.0).isfinite()


def test_user_tables_name_the_step_that_is_wrong():
    for values, message in (
        ((0.9, 0.5, 0.6, 0.1), "step 3"),
        ((0.9, 0.9, 0.1), "step 2"),
        ((1.0, 0.5), "step 1"),
        ((0.9, 0.0, 0.0), "step 2"),
        ((0.9,), "at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            Table(values)
    assert Table((0.9, 0.5, 0.0)).alpha(1.0) == 0


def test_names_are_checked_and_the_nearest_is_offered():
    with pytest.raises(InputError, match="'cosine'"):
        named("cosin")
    with pytest.raises(InputError, match="did you mean 'beta_min'"):
        named("vp", beta_mn=0.1)
    assert named("linear", zero_terminal=True, shift=1.0) == LogSNRShift(zero_terminal_snr(Linear()), 1.0)


def test_a_rising_log_snr_is_refused():
    class Rising(VariancePreserving):
        def log_snr(self, t):
            return -super().log_snr(t)

    with pytest.raises(InputError, match="must fall strictly"):
        Rising()


def test_numbers_become_float64_without_passing_through_float32():
    assert float(host(0.1)) == 0.1 and host(1).dtype == torch.float64
    assert host(torch.tensor(0.5, dtype=torch.bfloat16)).dtype == torch.float64


def test_coefficients_are_never_half_precision():
    coefficient = torch.tensor([1 - 1e-5, 0.5], dtype=torch.float64)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        moved = along_batch(coefficient, torch.zeros(2, 2, 2, 2, dtype=dtype))
        assert moved.dtype == expected and moved.shape == (2, 1, 1, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_derivatives_do_not_depend_on_the_grad_mode(mode):
    expected = Flow().sigma_dot(0.3), EDM().sigma_dot(0.3), Cosine().alpha_dot(0.3)
    with mode():
        found = Flow().sigma_dot(0.3), EDM().sigma_dot(0.3), Cosine().alpha_dot(0.3)
    assert found == expected
    assert all(float(value) != 0 for value in found)


def test_a_shifted_flow_stands_at_alpha_zero():
    """Its derivatives there agree with the limit from inside, so that flow prediction can start at t = 1."""
    shifted, generic = Flow(shift=-2.0), LogSNRShift(Flow(), -2.0)
    t = torch.tensor([0.1, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    torch.testing.assert_close(shifted.log_snr(t), generic.log_snr(t))
    torch.testing.assert_close(shifted.time(shifted.log_snr(t)), t)
    torch.testing.assert_close(shifted.sigma_dot(t), generic.sigma_dot(t), rtol=1e-6, atol=0)
    torch.testing.assert_close(shifted.alpha_dot(1.0), generic.alpha_dot(1 - 1e-9), rtol=1e-6, atol=0)
    assert named("flow", shift=-2.0) == shifted
