"""Rescaled guidance: the standard deviation of the plain estimate, and the mean scaled with it."""

import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import LABELS, T, X, toy
from undiffuse import InputError
from undiffuse.guidance import ClassifierFree, Rescaled


def spread(x):
    return x.flatten(1).std(1)


@pytest.mark.parametrize("predicts", ["v", "noise", "x0"])
def test_x0_has_the_standard_deviation_it_had_without_guidance(predicts):
    """Lin et al. 2024, eq. 15 and 16."""
    plain, x = toy(predicts), X.double()
    guided = ClassifierFree(plain, 3.0)
    before, after = plain.given(label=LABELS)(x, T).x0, guided.given(label=LABELS)(x, T).x0
    assert not torch.allclose(spread(before), spread(after), rtol=0.05)
    whole = Rescaled(guided, 1.0).given(label=LABELS)(x, T).x0
    assert_close(spread(whole), spread(before))
    ratio = (spread(before) / spread(after)).reshape(4, 1, 1, 1)
    assert_close(whole, after * ratio)
    shares = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    part = Rescaled(guided, shares).given(label=LABELS)(x, T).x0
    assert_close(part, shares.reshape(4, 1, 1, 1) * whole + (1 - shares.reshape(4, 1, 1, 1)) * after)


def test_both_estimates_come_from_one_evaluation():
    plain = toy()
    Rescaled(ClassifierFree(plain, 3.0)).given(label=LABELS)(X, T)
    assert plain.network.calls == [8]


def test_a_constant_sample_is_left_as_it_is():
    plain, x = toy("x0"), torch.full((2, 1, 1, 1), 0.3)
    plain.network.forward = lambda x, c_noise, vector: vector[:, :1, None, None] + 0 * x
    found = Rescaled(ClassifierFree(plain, 3.0), 1.0).given(label=1)(x, 0.5).x0
    assert torch.equal(found, ClassifierFree(plain, 3.0).given(label=1)(x, 0.5).x0)


def test_a_share_lies_between_none_and_all():
    for share in (-0.1, 1.1, torch.tensor([0.5, 2.0])):
        with pytest.raises(InputError, match="between 0 and 1"):
            Rescaled(ClassifierFree(toy(), 3.0), share)
