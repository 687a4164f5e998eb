"""Thresholds: x_0 within the range of the data, the noise that follows, and all else as it was."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import LABELS, T, X, toy
from undiffuse import InputError
from undiffuse.guidance import ClassifierFree, DynamicThreshold, StaticThreshold
from undiffuse.guidance.threshold import quantile
from undiffuse.prediction import PREDICTIONS

WIDE = 3 * torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_x0_is_clipped_and_the_noise_follows(predicts, bound):
    plain = toy(predicts)
    x0 = plain.given(label=LABELS)(WIDE, T).x0
    for threshold in (StaticThreshold(plain, bound), DynamicThreshold(plain, 0.9, bound)):
        found = threshold.given(label=LABELS)(WIDE, T)
        assert x0.abs().max() > 1.5 and found.x0.abs().max() <= bound
        alpha, sigma = (scale.reshape(4, 1, 1, 1) for scale in (found.level.alpha, found.level.sigma))
        assert_close(alpha * found.x0 + sigma * found.noise, WIDE)
    assert torch.equal(StaticThreshold(plain, bound).given(label=LABELS)(WIDE, T).x0, x0.clamp(-bound, bound))


@pytest.mark.parametrize("percentile", [0.05, 0.5, 0.9, 0.995, 1.0])
def test_the_dynamic_bound_is_a_percentile_of_each_sample(percentile):
    """Saharia et al. 2022, section 2.3: clip to [-s, s], divide by s where it is above the bound."""
    plain = toy("x0")
    x0 = plain.given(label=LABELS)(WIDE, T).x0 * torch.tensor([0.05, 1, 2, 3]).reshape(4, 1, 1, 1)
    found = DynamicThreshold(plain, percentile, 0.8).limited(x0)
    for one, expected in zip(found, x0, strict=True):
        s = max(0.8, np.quantile(expected.abs().numpy(), percentile))
        assert_close(one, expected.clamp(-s, s) / s * 0.8)
    within = x0[:1].clamp(-0.8, 0.8)
    assert torch.equal(DynamicThreshold(plain, percentile, 0.8).limited(within), within)


def test_a_quantile_is_that_of_torch():
    x = torch.randn(3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for q in (0.01, 0.3, 0.77, 0.995, 1.0):
        assert_close(quantile(x, q).flatten(), torch.quantile(x.flatten(1), q, 1))
    assert quantile(x[:, :1, :1], 0.5).flatten().tolist() == x[:, 0, 0].tolist()


@pytest.mark.slow
def test_a_sample_may_be_larger_than_torch_quantile_takes():
    x = torch.arange(2**24 + 1, dtype=torch.float64).flip(0)[None]
    assert_close(quantile(x, 0.995).item(), 0.995 * 2**24)


def test_a_threshold_around_guidance_limits_what_guidance_gives():
    plain = toy()
    guided = ClassifierFree(plain, 6.0)
    found = DynamicThreshold(guided).given(label=LABELS)(X.double(), T).x0
    x0 = guided.given(label=LABELS)(X.double(), T).x0
    assert x0.abs().max() > 1
    assert_close(found, DynamicThreshold(guided).limited(x0))
    with pytest.raises(InputError, match=r"write DynamicThreshold\(ClassifierFree\("):
        ClassifierFree(DynamicThreshold(plain), 6.0)


def test_what_a_threshold_refuses():
    for bound in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=f"above 0 and finite, not {bound}"):
            StaticThreshold(toy(), bound)
    for percentile in (0.0, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"in \(0, 1\], not at"):
            DynamicThreshold(toy(), percentile)
