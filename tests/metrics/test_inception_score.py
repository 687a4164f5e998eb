import math

import pytest
import torch

from seeing import normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import inception_score
from undiffuse.metrics.inception_score import measure_inception_score


def test_sure_and_all_classes_is_their_number_and_unsure_or_one_class_is_one():
    sure = 1000 * torch.eye(7).repeat(30, 1)
    assert inception_score(sure, splits=1) == pytest.approx((7, 0))
    assert inception_score(torch.zeros(50, 7)) == pytest.approx((1, 0))
    assert inception_score(sure[:1].repeat(50, 1)) == pytest.approx((1, 0))


def test_half_sure_in_closed_form():
    """Two kinds of samples with p = (q, 1 - q) and (1 - q, q): the divergence is log 2 less the entropy."""
    q = 0.9
    scores = torch.tensor([[q, 1 - q], [1 - q, q]], dtype=torch.float64).log().repeat(20, 1)
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    assert inception_score(scores + 5, splits=1)[0] == pytest.approx(math.exp(math.log(2) - entropy))


def test_parts_are_of_the_shuffled_samples():
    scores = 3 * normal(200, 5)
    parts = scores[torch.randperm(200, generator=torch.Generator().manual_seed(4))].split(50)
    values = torch.tensor([inception_score(part, splits=1)[0] for part in parts], dtype=torch.float64)
    assert inception_score(scores, splits=4, seed=4) == pytest.approx((float(values.mean()), float(values.std())))
    ordered = scores[scores.argmax(1).argsort()]
    assert inception_score(ordered)[0] == pytest.approx(inception_score(scores)[0], rel=0.1)


def test_a_measurement():
    found = measure_inception_score(seen(normal(50, 4), scores=normal(50, 6)))[0]
    mean, deviation = inception_score(normal(50, 6))
    assert found.value == mean and found.error == pytest.approx(deviation / math.sqrt(10))
    assert found.settings["splits"] == 10 and found.reference_n is None
    few = measure_inception_score(seen(normal(1, 4), scores=normal(1, 6)))[0]
    assert few.value == pytest.approx(1) and few.error is None


def test_refusals():
    for scores, splits, message in (
        (normal(5, 3), 6, r"\[1, 5\].* not 6"),
        (normal(5, 3), 0, "not 0"),
        (normal(5, 1), 1, "2 classes"),
        (normal(5, 3) / 0, 1, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            inception_score(scores, splits)
