"""What every guidance promises, for each entry of the registry: a newcomer needs a line in CASES and one in AROUND."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import LABELS, READINGS, Law, T, TwiceTheChannels, X, toy
from undiffuse import Denoiser, InputError
from undiffuse.guidance import (
    GUIDANCES,
    Autoguidance,
    Classifier,
    ClassifierFree,
    Composed,
    DynamicThreshold,
    Interval,
    Posterior,
    Rescaled,
    StaticThreshold,
    Steered,
)
from undiffuse.guidance.base import CONTRAST, THRESHOLD
from undiffuse.prediction import PREDICTIONS, V
from undiffuse.schedule import Cosine, Learned
from waiting import no_waiting

MIDDLE = (-1.5, 2.0)  # two of the four levels at T lie in it
STRENGTHS = torch.tensor([0.7, 0.0, 1.0, 0.4], dtype=torch.float64)


def weak(denoiser):
    """Another model, on the device of this one."""
    return toy("x0", seed=1).to(next(denoiser.parameters()).device)


def conditional(denoiser, labels):
    return denoiser.given(label=labels)


def tripled(denoiser, labels):
    return ClassifierFree(denoiser, 3.0).given(label=labels)


def brightness(x0):
    """A distance: how far a sample's mean is from 1."""
    return (x0.flatten(1).mean(1) - 1).square()


def left(x0):
    """A measurement: the left column."""
    return x0[..., :1]


SEEN = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 3, 2, 1)


@dataclass(frozen=True)
class Case:
    """guided(denoiser, labels, strength); at strength `neutral` it is plain(denoiser, labels)."""

    guided: Callable
    neutral: float
    strong: float
    plain: Callable = conditional
    per_sample: bool = True  # whether the strength may be
    exact: tuple[str, ...] = ("output", *READINGS)  # what is the same bit for bit


CASES = {
    "classifier-free": Case(lambda d, y, s: ClassifierFree(d, s).given(label=y), 1.0, 3.0),
    "composed": Case(lambda d, y, s: Composed(d, [({"label": y}, s), ({"label": 1}, (s - 1) / 2)]).given(), 1.0, 3.0),
    "autoguidance": Case(lambda d, y, s: Autoguidance(d, weak(d), s).given(label=y), 1.0, 3.0),
    "classifier": Case(lambda d, y, s: Classifier(d, Law(), s).given(label=y), 0.0, 3.0),
    "steered": Case(lambda d, y, s: Steered(d, brightness, s).given(label=y), 0.0, 3.0),
    "posterior": Case(lambda d, y, s: Posterior(d, left, SEEN, 0.3, s).given(label=y), 0.0, 1.0),
    "interval": Case(lambda d, y, s: Interval(ClassifierFree(d, s), *MIDDLE).given(label=y), 1.0, 3.0),
    "rescale": Case(lambda d, y, s: Rescaled(ClassifierFree(d, 3.0), s).given(label=y), 0.0, 0.7, tripled),
    "static-threshold": Case(
        lambda d, y, s: StaticThreshold(d, s).given(label=y), 1e6, 0.5, per_sample=False, exact=("x0",)
    ),
    "dynamic-threshold": Case(
        lambda d, y, s: DynamicThreshold(d, 0.9, s).given(label=y), 1e6, 0.5, per_sample=False, exact=("x0",)
    ),
}


def strengths(case):
    """One for each sample where that may be, else the strong one."""
    return case.neutral + (case.strong - case.neutral) * STRENGTHS if case.per_sample else case.strong


def test_every_guidance_is_tested():
    assert CASES.keys() == AROUND.keys() == GUIDANCES.keys()


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("predicts, dtype", [*((p, torch.float64) for p in PREDICTIONS), ("v", torch.float32)])
def test_at_its_neutral_setting_a_guidance_changes_nothing(name, predicts, dtype):
    case, plain, x = CASES[name], toy(predicts), X.to(dtype)
    found, expected = case.guided(plain, LABELS, case.neutral)(x, T), case.plain(plain, LABELS)(x, T)
    for what in case.exact:
        assert torch.equal(getattr(found, what), getattr(expected, what))
    for what in READINGS:
        assert getattr(found, what).dtype == dtype
        assert_close(getattr(found, what), getattr(expected, what), rtol=1e-4, atol=1e-4)
    strong = case.guided(plain, LABELS, case.strong)(x, T)
    assert not torch.allclose(strong.x0, expected.x0, rtol=1e-2)


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("predicts", ["v", "noise"])
def test_a_sample_does_not_depend_on_its_batch(name, predicts):
    """Of its own time, label and strength, alone, among others, and by `rows`."""
    case, plain, x = CASES[name], toy(predicts), X.double()
    strength = strengths(case)
    guided = case.guided(plain, LABELS, strength)
    together = guided(x, T)
    for i in range(4):
        own = float(strength[i]) if case.per_sample else strength
        alone = case.guided(plain, LABELS[i], own)(x[i : i + 1], float(T[i]))
        for what in READINGS:
            assert_close(getattr(together, what)[i], getattr(alone, what)[0], rtol=1e-12, atol=1e-12)
    for index in (torch.tensor([2, 0]), torch.tensor([3])):
        some = guided.rows(index)(x[index], T[index])
        for what in READINGS:
            assert_close(getattr(some, what), getattr(together, what)[index], rtol=1e-12, atol=1e-12)
    assert torch.equal(guided(x, T).output, together.output)  # `rows` left it as it was


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_learned_variance_is_carried_on(name):
    plain = toy()
    plain = Denoiser(TwiceTheChannels(), Cosine(), conditioner=plain.conditioner).requires_grad_(False)
    case = CASES[name]
    guided, expected = case.guided(plain, LABELS, case.strong), plain.given(label=LABELS)(X, T).variance_fraction
    assert guided.learns_variance
    assert torch.equal(guided(X, T).variance_fraction, expected)


@pytest.mark.parametrize("name", GUIDANCES)
def test_what_is_held_per_sample_is_held_for_all_of_them(name):
    case = CASES[name]
    if case.per_sample:
        with pytest.raises(InputError, match=r"holds 3 values of \w+ for 4 samples"):
            case.guided(toy(), 1, strengths(case)[:3])(X, T)


@pytest.mark.parametrize("name", GUIDANCES)
def test_no_guidance_waits_for_the_device(name):
    """On the meta device there are no values, so what asks for one fails."""
    case = CASES[name]
    for t in (T, 0.5):
        guided, x = case.guided(toy().to("meta"), LABELS, strengths(case)), X.to("meta")
        with no_waiting():
            estimate = guided(x, t)
        assert estimate.x0.device.type == estimate.noise.device.type == "meta"


# around any denoiser or guidance that it may go around
AROUND = {
    "classifier-free": lambda d: ClassifierFree(d, 2.0),
    "composed": lambda d: Composed(d, [({"label": LABELS}, 2.0), ({"label": 1}, 0.5)]),
    "autoguidance": lambda d: Autoguidance(d, weak(d), 1.5),
    "classifier": lambda d: Classifier(d, Law(), 2.0),
    "steered": lambda d: Steered(d, brightness, 2.0),
    "posterior": lambda d: Posterior(d, left, SEEN, 0.3, covariance="isotropic"),
    "interval": lambda d: Interval(d, *MIDDLE),
    "rescale": lambda d: Rescaled(d, 0.7),
    "static-threshold": lambda d: StaticThreshold(d, 0.8),
    "dynamic-threshold": lambda d: DynamicThreshold(d, 0.9, 0.5),
}
NEED_A_GUIDANCE = {"interval", "rescale"}


def around(name, denoiser):
    """The guidance around a denoiser, or around another guidance of it where it needs one."""
    return AROUND[name](ClassifierFree(denoiser, 3.0) if name in NEED_A_GUIDANCE else denoiser)


@pytest.mark.parametrize("inner", GUIDANCES)
@pytest.mark.parametrize("outer", GUIDANCES)
def test_every_pair_composes_or_says_in_which_order_it_would(outer, inner):
    kinds = GUIDANCES[outer], GUIDANCES[inner]
    if kinds[1].stage > kinds[0].stage or (outer, inner) == ("steered", "posterior"):
        names = kinds[1].__name__, kinds[0].__name__
        message = rf"{names[0]} belongs outside {names[1]}: write {names[0]}\({names[1]}\("
    elif kinds[1].stage == CONTRAST == kinds[0].stage and (kinds[0] is not Autoguidance or kinds[1] is Autoguidance):
        message = f"{kinds[0].__name__} cannot go around {kinds[1].__name__}"
    else:
        guidance = AROUND[outer](around(inner, toy()))
        given = {} if "composed" in (outer, inner) and outer != "classifier" else {"label": LABELS}
        both, condition = guidance.both, guidance.encode(given)
        without, guided = both(X.double(), T, condition)
        assert_close(without.x0, guidance.plain(X.double(), T, condition).x0)
        assert_close(guided.x0, guidance(X.double(), T, condition).x0)
        if kinds[1].stage != THRESHOLD:  # which leaves nothing to limit
            assert not torch.allclose(guided.x0, without.x0)
        index = torch.tensor([3, 1])
        given = guidance.given(**given)
        assert_close(given.rows(index)(X.double()[index], T[index]).x0, guided.x0[index])
        return
    with pytest.raises(InputError, match=message):
        AROUND[outer](around(inner, toy()))


def test_a_limit_needs_a_guidance(unchecked):
    for name in NEED_A_GUIDANCE:
        with pytest.raises(InputError, match=r"goes around a guidance, such as .*, not around Denoiser"):
            AROUND[name](toy())


@pytest.mark.parametrize("name", ["classifier", "steered", "posterior"])
def test_guidance_by_gradients_says_that_inference_mode_has_none(name):
    with torch.inference_mode(), pytest.raises(InputError, match="guidance by gradients runs"):
        CASES[name].guided(toy(), LABELS, CASES[name].strong)(X, T)


def test_the_same_levels_under_another_name_are_the_same_schedule():
    learned = [Denoiser(torch.nn.Identity(), Learned(), V(label="log-snr")) for _ in range(2)]
    Autoguidance(*learned, 2.0)
    with torch.no_grad():
        learned[1].schedule.heights[:4] += 2
    with pytest.raises(InputError, match="both must be on one schedule"):
        Autoguidance(*learned, 2.0)
