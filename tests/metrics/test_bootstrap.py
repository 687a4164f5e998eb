import sys

import pytest
import torch

from seeing import normal
from undiffuse.errors import InputError
from undiffuse.metrics.bootstrap import bootstrap


def test_the_error_of_a_mean_is_the_deviation_over_the_root_of_n():
    values = normal(400, 1, scale=3.0)[:, 0]
    error, (low, high) = bootstrap(lambda drawn: drawn.mean(1), values)
    assert error == pytest.approx(float(values.std(correction=0)) / 20, rel=0.1)
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.2 * error)


def test_several_sets_are_drawn_each_on_its_own_and_a_seed_repeats_it():
    a, b = normal(200, 1)[:, 0], normal(100, 1, 1)[:, 0]
    error, between = bootstrap(lambda x, y: x.mean(1) - y.mean(1), a, b)
    assert error == pytest.approx(float((a.var() / 200 + b.var() / 100).sqrt()), rel=0.1)
    assert bootstrap(lambda x, y: x.mean(1) - y.mean(1), a, b) == (error, between)
    assert bootstrap(lambda x, y: x.mean(1) - y.mean(1), a, b, seed=1) != (error, between)


def test_large_sets_are_drawn_in_parts(monkeypatch):
    values = normal(3000, 1)[:, 0]
    error, between = bootstrap(lambda drawn: drawn.mean(1), values, resamples=100)
    monkeypatch.setattr(sys.modules["undiffuse.metrics.bootstrap"], "AT_ONCE", 7 * 3000)
    in_parts = bootstrap(lambda drawn: drawn.mean(1), values, resamples=100)
    assert in_parts[0] == pytest.approx(error) and in_parts[1] == pytest.approx(between)
    bootstrap(lambda drawn: drawn.quantile(0.5, dim=1), normal(3_000_000, 1)[:, 0], resamples=2)


def test_refusals():
    with pytest.raises(InputError, match="2 values"):
        bootstrap(lambda drawn: drawn.mean(1), torch.zeros(1))
