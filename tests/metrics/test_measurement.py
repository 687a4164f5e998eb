import dataclasses
import json

import pytest
import torch

from undiffuse.errors import InputError
from undiffuse.metrics import Measurement
from undiffuse.metrics.measurement import interval, mean


def made(metric: str, inception: bool = False, **more: object) -> Measurement:
    settings = {"features": "64 classifier features", "key": "k", "inception": inception}
    return Measurement(metric, 2.0, 0.5, "bootstrap", interval(2.0, 0.5), 100, 90, settings, **more)


@pytest.mark.parametrize(
    ("metric", "inception", "label"),
    [
        ("frechet-distance", False, "Frechet distance over 64 classifier features"),
        ("fid", True, "FID"),
        ("kid", True, "KID"),
        ("kid", False, "Kernel distance over 64 classifier features"),
        ("inception-score", True, "Inception Score"),
        ("inception-score", False, "Inception Score over 64 classifier features"),
        ("real-diversity", True, "Real diversity over 64 classifier features"),
    ],
)
def test_a_label_says_what_it_is_over_unless_the_name_does(metric, inception, label):
    assert made(metric, inception).label == label
    assert made(metric, inception, of=3).label == f"{label}, class 3"


def test_json_holds_all_of_it():
    found = json.loads(json.dumps(made("kid", of=4).to_json()))
    assert found["value"] == 2 and found["error"] == 0.5 and found["class"] == 4 and found["n"] == 100
    assert found["interval"] == pytest.approx([2 - 0.98, 2 + 0.98], abs=1e-3)
    assert found["settings"]["key"] == "k" and found["reference_n"] == 90
    assert "class" not in made("kid").to_json()


def test_the_interval_keeps_within_the_range_of_the_metric():
    assert interval(0.1, 0.5, low=0, high=1) == (0, 1)
    assert interval(0.1, None) is None


def test_a_mean_has_the_error_of_a_mean():
    values = torch.tensor([1.0, 2.0, 6.0])
    found = mean("psnr", values, window=3)
    assert (found.value, found.n, found.settings) == (3, 3, {"window": 3})
    assert found.error == pytest.approx((7 / 3) ** 0.5)
    assert mean("psnr", values[:1]).error is None


def test_refusals():
    with pytest.raises(InputError, match="not a number: nan"):
        dataclasses.replace(made("kid"), value=float("nan"))
    with pytest.raises(InputError, match="N >= 1"):
        mean("psnr", torch.zeros(0))
