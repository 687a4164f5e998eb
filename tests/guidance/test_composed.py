"""Mixtures of conditions: with one part classifier-free guidance, with weights that add up to 1 an average."""

import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import LABELS, READINGS, T, X, toy
from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label, Vector
from undiffuse.guidance import ClassifierFree, Composed
from undiffuse.prediction import PREDICTIONS
from undiffuse.schedule import Cosine


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("sequential", [False, True])
def test_each_part_adds_its_own_contrast_with_the_null_in_every_parameterization(predicts, sequential):
    plain, x = toy(predicts), X.double()
    each = torch.tensor([0.0, 1.0, -0.7, 2.0], dtype=torch.float64)
    parts = [({"label": LABELS}, 2.0), ({"label": 1}, -0.5), ({"label": 0}, each)]
    guided = Composed(plain, parts, sequential).given()(x, T)
    assert plain.network.calls == ([4] * 4 if sequential else [16])
    null = plain(x, T)
    for name in READINGS:
        expected = getattr(null, name)
        for condition, weight in parts:
            shift = getattr(plain.given(**condition)(x, T), name) - getattr(null, name)
            expected = expected + torch.as_tensor(weight).reshape(-1, 1, 1, 1) * shift
        assert_close(getattr(guided, name), expected)


def test_one_part_is_classifier_free_guidance_and_conditions_given_later_are_shared():
    conditioner = Conditioner({"label": Label(3, 3), "size": Vector(2, 3)})
    plain = Denoiser(toy().network, Cosine(), conditioner=conditioner).requires_grad_(False)
    size = torch.tensor([[0.3, 0.1]])
    composed = Composed(plain, [({"label": LABELS}, 3.0)]).given(size=size)
    free = ClassifierFree(plain, 3.0).given(label=LABELS, size=size)
    assert torch.equal(composed(X, T).output, free(X, T).output)
    two = Composed(plain, [({"label": 1}, 0.4), ({"label": 2}, 0.6)]).given(size=size)(X.double(), T).x0
    expected = [
        weight * plain.given(label=label, size=size)(X.double(), T).x0 for label, weight in ((1, 0.4), (2, 0.6))
    ]
    assert_close(two, sum(expected))


def test_what_has_no_null_may_be_said_by_the_parts():
    conditioner = Conditioner({"label": Label(3, 3), "must": Vector(2, 3, optional=False)})
    plain, must = Denoiser(toy().network, Cosine(), conditioner=conditioner).requires_grad_(False), [1.0, 2.0]
    parts = [({"label": label, "must": must}, 2.0) for label in (1, 2)]
    inside, beside = Composed(plain, parts), Composed(plain, [({"label": label}, 2.0) for label in (1, 2)])
    assert torch.equal(inside.given()(X, T).output, beside.given(must=must)(X, T).output)


def test_an_average_of_conditions_does_not_evaluate_the_null():
    plain = toy()
    parts = [({"label": label}, weight) for label, weight in enumerate((0.6, 0.3, 0.1))]  # whose sum in binary is not 1
    Composed(plain, parts).given()(X, T)
    assert plain.network.calls == [12]
    Composed(plain, [parts[0], ({"label": 1}, torch.tensor([0.4, 0.4, 0.4, 0.3]))]).given()(X, T)
    assert plain.network.calls == [12, 12]
    Composed(plain, [({"label": 1}, 0.0), ({"label": 2}, 1.0)]).given()(X, T)
    assert plain.network.calls == [12, 12, 4]


def test_without_guidance_it_is_what_is_guided_to_in_proportion():
    plain, x = toy(), X.double()
    composed = Composed(plain, [({"label": 0}, 3.0), ({"label": 1}, 1.0), ({"label": 2}, -2.0)])
    first, second = (plain.given(label=label)(x, T).x0 for label in (0, 1))
    expected = (3 * first + second) / 4
    condition = composed.encode({})
    assert_close(composed.plain(x, T, condition).x0, expected)
    without, guided = composed.both(x, T, condition)
    assert_close(without.x0, expected)
    assert torch.equal(guided.x0, composed(x, T, condition).x0)
    away = Composed(plain, [({"label": 2}, -2.0)])
    assert torch.equal(away.plain(x, T).x0, plain(x, T).x0)


def test_what_a_mixture_refuses():
    plain = toy()
    with pytest.raises(InputError, match="at least 1 part"):
        Composed(plain, [])
    with pytest.raises(InputError, match="for 2 and 3 samples"):
        Composed(plain, [({"label": 1}, torch.ones(2)), ({"label": 1}, torch.ones(3))])
    with pytest.raises(InputError, match="part's scale must be finite"):
        Composed(plain, [({"label": 1}, float("inf"))])
    with pytest.raises(InputError, match="the parts say 'label' already"):
        Composed(plain, [({"label": 1}, 2.0)]).given(label=2)
    with pytest.raises(InputError, match="unknown condition 'lable'"):
        Composed(plain, [({"lable": 1}, 2.0)]).given()
