"""Classifier-free guidance: exact at its ends, linear between and beyond, the same in every parameterization."""

import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import LABELS, READINGS, Labelled, T, TwiceTheChannels, X, toy
from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Embeddings, Label, Vector
from undiffuse.guidance import ClassifierFree
from undiffuse.prediction import PREDICTIONS
from undiffuse.samplers import DPMSolverPlusPlus, grid, sample
from undiffuse.schedule import Cosine


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("sequential", [False, True])
def test_scale_one_is_the_conditional_and_zero_the_unconditional_bit_for_bit(predicts, sequential):
    plain = toy(predicts)
    for scale, condition in ((0.0, {}), (1.0, {"label": LABELS})):
        expected = plain(X, T, plain.encode(condition))
        whole = torch.tensor([scale, scale, scale, 2.0])  # with another among them, or for all
        for scales, count in ((scale, 4), (whole, 3)):
            guided = ClassifierFree(plain, scales, sequential=sequential).given(label=LABELS)(X, T)
            for what in ("output", *READINGS):
                assert torch.equal(getattr(guided, what)[:count], getattr(expected, what)[:count])


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("scale", [-0.5, 0.4, 3.0])
def test_guidance_extrapolates_from_null_to_condition_in_every_parameterization(predicts, scale):
    plain = toy(predicts)
    x = X.double()
    guided = ClassifierFree(plain, scale).given(label=LABELS)(x, T)
    null, given = plain(x, T), plain(x, T, plain.encode({"label": LABELS}))
    for name in READINGS:
        without, condition = getattr(null, name), getattr(given, name)
        assert_close(getattr(guided, name), without + scale * (condition - without))
        # the other convention in use, where w = 0 is the conditional, not the unconditional
        w = scale - 1
        assert_close(getattr(guided, name), (1 + w) * condition - w * without)


def test_a_condition_may_be_one_for_all():
    one, each = (ClassifierFree(toy(), 3.0).given(label=label)(X, T).x0 for label in (2, [2, 2, 2, 2]))
    assert torch.equal(one, each)


@pytest.mark.parametrize("scale, calls", [(3.0, [8]), (1.0, [4]), (0.0, [4]), (torch.tensor([0.0, 1, 1, 1]), [8])])
def test_what_has_no_weight_is_not_evaluated(scale, calls):
    plain = toy()
    ClassifierFree(plain, scale).given(label=LABELS)(X, T)
    assert plain.network.calls == calls


def test_one_after_the_other_is_the_same_from_batches_of_half_the_size():
    plain = toy()
    together, apart = (ClassifierFree(plain, 3.0, sequential=s).given(label=LABELS)(X, T) for s in (False, True))
    assert plain.network.calls == [8, 4, 4]
    for name in READINGS:
        assert torch.equal(getattr(together, name), getattr(apart, name))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_negative_condition_stands_in_the_nulls_place(scale):
    plain, x = toy(), X.double()
    guided = ClassifierFree(plain, scale, negative={"label": 1}).given(label=LABELS)(x, T)
    away, to = (plain(x, T, plain.encode({"label": label})) for label in ([1] * 4, LABELS))
    assert_close(guided.noise, away.noise + scale * (to.noise - away.noise))
    if scale in (0.0, 1.0):
        assert torch.equal(guided.output, (away, to)[int(scale)].output)
    # away from the negative, to nothing in particular
    only = ClassifierFree(plain, scale, negative={"label": 1}).given()(x, T)
    assert_close(only.noise, away.noise + scale * (plain(x, T).noise - away.noise))


def test_what_a_negative_does_not_name_has_its_null_there_or_where_it_has_none_its_value():
    conditioner = Conditioner({"label": Label(3, 3), "size": Vector(2, 3), "must": Vector(2, 3, optional=False)})
    plain = Denoiser(toy().network, Cosine(), conditioner=conditioner).requires_grad_(False)
    x, given = X.double(), {"label": LABELS, "size": [0.3, 0.1], "must": [1.0, 2.0]}
    guided = ClassifierFree(plain, 3.0, negative={"label": 1}).given(**given)(x, T)
    away = plain.given(label=1, must=given["must"])(x, T)
    assert_close(guided.x0, away.x0 + 3 * (plain.given(**given)(x, T).x0 - away.x0))
    said = ClassifierFree(plain, 3.0, negative={"must": [3.0, 4.0]}).given(**given)(x, T)
    away = plain.given(must=[3.0, 4.0])(x, T)
    assert_close(said.x0, away.x0 + 3 * (plain.given(**given)(x, T).x0 - away.x0))
    without = ClassifierFree(plain, 3.0).given(**given)(x, T)  # and so has the null
    null = plain.given(must=given["must"])(x, T)
    assert_close(without.x0, null.x0 + 3 * (plain.given(**given)(x, T).x0 - null.x0))


def test_the_learned_variance_is_that_of_the_estimate_with_the_larger_weight():
    plain = toy()
    plain = Denoiser(TwiceTheChannels(), Cosine(), conditioner=plain.conditioner).requires_grad_(False)
    null, given = plain(X, T).variance_fraction, plain.given(label=LABELS)(X, T).variance_fraction
    scales = torch.tensor([0.0, 1.0, 0.4, 3.0])
    together = ClassifierFree(plain, scales).given(label=LABELS)(X, T).variance_fraction
    assert torch.equal(together, torch.where(scales.reshape(4, 1, 1, 1) > 0.5, given, null))
    assert torch.equal(ClassifierFree(plain, 0.0).given(label=LABELS)(X, T).variance_fraction, null)


def test_guided_samples_do_not_depend_on_their_batch():
    plain = Labelled(Cosine())
    times, seeds = grid.named("log-snr", plain.schedule, 8, plain.t_min, 1.0), torch.arange(6)
    labels = seeds % 2

    def run(chosen):
        guided = ClassifierFree(plain, 2.0).given(label=labels[chosen])
        return sample(guided, DPMSolverPlusPlus(), plain.prior(seeds[chosen], (2,), torch.float64), times)

    whole = run(torch.arange(6))
    for chosen in ([4], [5, 0, 3]):
        assert_close(run(torch.tensor(chosen)), whole[chosen], rtol=1e-10, atol=1e-10)


def test_what_guidance_refuses():
    plain = toy()
    with pytest.raises(InputError, match="needs a condition"):
        ClassifierFree(plain, 2.0)(X, T)
    with pytest.raises(InputError, match="finite, not nan"):
        ClassifierFree(plain, float("nan"))
    with pytest.raises(InputError, match="knows"):
        ClassifierFree(plain, 2.0).given(label=1)(X, 0.0)
    with pytest.raises(InputError, match="unknown condition 'labl': did you mean 'label'"):
        ClassifierFree(plain, 2.0, negative={"labl": 1}).given(label=1)
    with pytest.raises(InputError, match="its condition is given after that"):
        ClassifierFree(plain.given(label=1), 2.0)
    words = Denoiser(plain.network, Cosine(), conditioner=Conditioner({"words": Embeddings(3)}))
    with pytest.raises(InputError, match=r"of one size, not \(1, 4, 3\) and \(1, 2, 3\)"):
        ClassifierFree(words, 2.0, negative={"words": torch.ones(4, 3)}).given(words=torch.ones(2, 3))
    assert plain.network.calls == []
