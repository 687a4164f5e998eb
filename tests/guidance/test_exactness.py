"""Guided scores against closed forms: log-densities of a labelled mixture, differentiated by autograd.

The closed forms are of log p(x_t | y) and log p(x_t), by `exact.Mixture.log_prob`; the estimates never see them.
"""

import pytest
import torch
from torch.testing import assert_close

from guidance.labelled import Labelled
from undiffuse.guidance import Autoguidance, ClassifierFree, Composed, Interval
from undiffuse.schedule import Cosine, Flow

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 1, 0])
SCALES = torch.tensor([0.0, 1.0, 2.5, 5.0, -1.0], dtype=torch.float64)


@pytest.fixture(params=[Cosine(), Flow()], ids=repr)
def model(request):
    return Labelled(request.param)


def gradient(log_density):
    """grad_x of a function of x (5, 2) that gives (5,)."""
    x = X.clone().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x)[0]


def same(guided, expected, **given):
    score = guided.given(**given)(X, T).score
    assert_close(score, expected, rtol=1e-9, atol=1e-9)


def test_classifier_free_guidance_is_the_score_of_the_tilted_density(model):
    """grad [ (1 - s) log p(x) + s log p(x | y) ]."""
    expected = gradient(lambda x: (1 - SCALES) * model.log_prob(x, T) + SCALES * model.log_prob(x, T, LABELS))
    same(ClassifierFree(model, SCALES), expected, label=LABELS)


def test_a_negative_condition_takes_the_place_of_the_whole_density(model):
    """grad [ (1 - s) log p(x | n) + s log p(x | y) ]."""
    expected = gradient(lambda x: (1 - SCALES) * model.log_prob(x, T, 2) + SCALES * model.log_prob(x, T, LABELS))
    same(ClassifierFree(model, SCALES, negative={"label": 2}), expected, label=LABELS)


def test_a_mixture_of_conditions_is_the_score_of_a_product_of_ratios(model):
    """grad [ log p(x) + sum_k w_k log (p(x | y_k) / p(x)) ]."""
    parts = [({"label": LABELS}, SCALES), ({"label": 1}, 1.5), ({"label": 0}, -0.5)]

    def log_density(x):
        whole = model.log_prob(x, T)
        return whole + sum(w * (model.log_prob(x, T, part["label"]) - whole) for part, w in parts)

    same(Composed(model, parts), gradient(log_density))


def test_autoguidance_is_the_score_of_the_ratio_of_two_models(model):
    """grad [ log p_weak(x | y) + s log (p(x | y) / p_weak(x | y)) ], the weak model having wider classes."""
    weak = Labelled(model.schedule, inflated=2.0)

    def log_density(x):
        return (1 - SCALES) * weak.log_prob(x, T, LABELS) + SCALES * model.log_prob(x, T, LABELS)

    same(Autoguidance(model, weak, SCALES), gradient(log_density), label=LABELS)


def test_guided_models_are_contrasted_as_they_are(model):
    weak = Labelled(model.schedule, inflated=2.0)

    def tilted(of, x, scale):
        return (1 - scale) * of.log_prob(x, T) + scale * of.log_prob(x, T, LABELS)

    expected = gradient(lambda x: (1 - SCALES) * tilted(weak, x, 1.5) + SCALES * tilted(model, x, 3.0))
    both = Autoguidance(ClassifierFree(model, 3.0), ClassifierFree(weak, 1.5), SCALES)
    same(both, expected, label=LABELS)


def test_an_interval_is_the_tilted_density_inside_and_the_plain_one_outside(model):
    low, high = -2.0, 2.0
    log_snr = model.schedule.log_snr(T)
    scales = torch.where((log_snr >= low) & (log_snr <= high), 4.0, 1.0)
    assert scales.unique().tolist() == [1.0, 4.0]
    expected = gradient(lambda x: (1 - scales) * model.log_prob(x, T) + scales * model.log_prob(x, T, LABELS))
    same(Interval(ClassifierFree(model, 4.0), low, high), expected, label=LABELS)
