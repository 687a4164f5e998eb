"""Guidance in an interval: the guidance within, the plain estimate outside, and no evaluation for nothing."""

import math

import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import LABELS, READINGS, T, X, toy
from undiffuse import InputError
from undiffuse.guidance import Autoguidance, ClassifierFree, Interval, Rescaled
from undiffuse.samplers import DDIM, grid, sample
from undiffuse.schedule import EDM

INSIDE = torch.tensor([False, True, True, False])  # at T, of -1.5 to 2 on the cosine schedule


@pytest.mark.parametrize("predicts", ["v", "noise"])
def test_guidance_within_and_the_conditional_outside(predicts):
    plain, x = toy(predicts), X.double()
    assert torch.equal((plain.schedule.log_snr(T) - 0.25).abs() <= 1.75, INSIDE)
    guided = ClassifierFree(plain, 3.0)
    found = Interval(guided, -1.5, 2.0).given(label=LABELS)(x, T)
    assert plain.network.calls == [4, 2]
    within, outside = guided.given(label=LABELS)(x, T), plain.given(label=LABELS)(x, T)
    for what in READINGS:
        expected = torch.where(INSIDE.reshape(4, 1, 1, 1), getattr(within, what), getattr(outside, what))
        assert torch.equal(getattr(found, what), expected)


def test_the_ends_are_inside_and_by_default_all_is():
    plain = toy()
    guided = ClassifierFree(plain, 3.0)
    for ends in ((float(plain.schedule.log_snr(0.5)), 9.0), (-9.0, float(plain.schedule.log_snr(0.5))), ()):
        assert torch.equal(Interval(guided, *ends).given(label=1)(X, 0.5).output, guided.given(label=1)(X, 0.5).output)
    assert torch.equal(Interval(guided).given(label=1)(X, 1.0).output, guided.given(label=1)(X, 1.0).output)


def test_the_papers_sigma_is_that_of_data_that_are_not_scaled():
    """(0.28, 2.9], its best interval on ImageNet-512."""
    plain = toy("edm", schedule=EDM())
    guided = ClassifierFree(plain, 3.0)
    limited = Interval(guided, -2 * math.log(2.9), -2 * math.log(0.28)).given(label=1)
    for sigma, inside in ((0.27, False), (0.29, True), (2.89, True), (2.91, False)):
        t = float(plain.schedule.time(-2 * math.log(sigma)))
        expected = (guided if inside else plain).given(label=1)(X, t)
        assert torch.equal(limited(X, t).output, expected.output)


@pytest.mark.parametrize("guide", [lambda d: ClassifierFree(d, 3.0), lambda d: Autoguidance(d, toy(seed=1), 2.0)])
def test_it_commutes_with_rescaling(guide):
    plain, x = toy("noise"), X.double()
    one = Interval(Rescaled(guide(plain), 0.7), -1.5, 2.0).given(label=LABELS)(x, T)
    other = Rescaled(Interval(guide(plain), -1.5, 2.0), 0.7).given(label=LABELS)(x, T)
    for what in READINGS:
        assert_close(getattr(one, what), getattr(other, what), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(one.x0, Interval(guide(plain), -1.5, 2.0).given(label=LABELS)(x, T).x0)


@pytest.mark.parametrize("limit", [lambda g: Interval(g, -2, 3), lambda g: Rescaled(Interval(g, -2, 3))])
def test_sampling_evaluates_twice_the_batch_inside_only(limit):
    plain = toy()
    times = grid.named("vp-quadratic", plain.schedule, 20, plain.t_min, 1.0)
    sample(limit(ClassifierFree(plain, 3.0)).given(label=LABELS), DDIM(), X, times)
    log_snr = plain.schedule.log_snr(times[:-1])
    inside = (log_snr >= -2) & (log_snr <= 3)
    assert 0 < int(inside.sum()) < 20
    assert plain.network.calls == [8 if within else 4 for within in inside.tolist()]


def test_an_interval_has_two_ends():
    guided = ClassifierFree(toy(), 3.0)
    for low, high in ((2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(InputError, match=f"with low < high, not from {low} to {high}"):
            Interval(guided, low, high)
