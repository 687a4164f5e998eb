"""Every metric by its name: on a set against itself, on what is known to be worse, and by class."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seeing import Flat, normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import METRICS, Seen, better, by_class, check, look, measure
from undiffuse.metrics.suite import NUMBERS, wanted

LABELS = torch.arange(300) % 3


def whole(seed: int, n: int = 300, d: int = 6, centre: float = 0.0) -> Seen:
    """Everything a metric may need: features, scores, labels."""
    scores = 3 * functional.one_hot(LABELS[:n], 3) + normal(n, 3, seed + 500)
    return seen(normal(n, d, seed, centre=centre), LABELS[:n], scores)


def numbers(samples: Seen, reference: Seen, *names: str, train: Seen | None = None) -> dict[str, float]:
    return {found.metric: found.value for found in measure(samples, reference, names or None, train)}


def test_every_metric_has_a_name_for_the_command_line_and_its_numbers_are_its_own():
    assert list(METRICS) == sorted(METRICS)
    assert all("_" not in name for name in (*METRICS, *NUMBERS))
    assert sum(len(metric.gives) for metric in METRICS.values()) == len(NUMBERS)


@pytest.mark.parametrize("name", METRICS)
def test_a_set_against_itself_and_what_a_measurement_says(name):
    samples = whole(0)
    ones = ("precision", "recall", "coverage", "suspicious-share")
    expected = {"frechet-distance": 0, "memorisation-ratio": 0, **dict.fromkeys(ones, 1)}
    train = whole(0) if name != "memorisation" else replace(whole(0), features=torch.cat([whole(0).features[:150]] * 2))
    held_out = whole(1) if name == "memorisation" else samples
    found = METRICS[name](samples if name != "memorisation" else train, held_out, train)
    assert {one.metric for one in found} == set(METRICS[name].gives) - {"fid"}
    for one in found:
        assert one.value == pytest.approx(expected.get(one.metric, one.value), abs=1e-9)
        assert one.n == 300 and one.error >= 0 and one.error_by
        low, high = one.interval
        assert low <= one.value <= high and math.isfinite(low) and math.isfinite(high)
        assert one.settings["features"] == "given numbers" and one.settings["key"] == "given"
    values = {one.metric: one.value for one in found}
    if name == "kid":
        assert values["kid"] < 0  # the samples' own diagonal is left out, and that between the sets is not
    if name == "diversity":
        assert values["diversity"] == values["real-diversity"]


def test_two_draws_of_one_law_are_near_and_a_shift_is_measured():
    """N(0, I) against N(c, I) in 6 dimensions: the Frechet distance is 6 c^2."""
    near, far = numbers(whole(0), whole(1)), numbers(whole(0, centre=2.0), whole(1))
    assert near["frechet-distance"] < 0.5 and far["frechet-distance"] == pytest.approx(24, rel=0.1)
    assert abs(near["kid"]) < 0.1 < far["kid"]
    assert near["precision"] > 0.8 > far["precision"] and near["coverage"] > 0.9 > far["coverage"]
    assert near["density"] > 0.8 > far["density"] and near["recall"] > 0.8 > far["recall"]


def pictures(n: int, seed: int) -> Tensor:
    """Squares of random grey, so that noise and blur are seen."""
    coarse = torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return (240 * functional.interpolate(coarse, (8, 8), mode="nearest")).byte()


def test_noise_and_blur_raise_distances_the_more_the_stronger():
    fresh = pictures(300, 0)
    real = look(Flat(), fresh)
    noise = normal(300, 64, 2).reshape(300, 1, 8, 8)
    noisy = [(fresh.float() + level * noise).clamp(0, 255).byte() for level in (0, 20, 50, 100)]
    blurred = [fresh] + [
        functional.avg_pool2d(fresh.float(), k, 1, k // 2, count_include_pad=False).byte() for k in (3, 5, 7)
    ]
    for worse in (noisy, blurred):
        found = [numbers(look(Flat(), images), real, "frechet-distance", "kid") for images in worse]
        for name in ("frechet-distance", "kid"):
            values = [one[name] for one in found]
            assert all(less < more for less, more in itertools.pairwise(values))


def test_a_mode_that_is_dropped_lowers_recall_and_coverage_and_not_precision():
    real, both = seen(normal(300, 4) + 20 * (LABELS == 0)[:, None]), normal(300, 4, 1) + 20 * (LABELS == 0)[:, None]
    one = normal(300, 4, 2)
    names = ("precision-recall",)
    full, dropped = numbers(seen(both), real, *names), numbers(seen(one), real, *names)
    assert dropped["precision"] == pytest.approx(full["precision"], abs=0.1)
    assert dropped["recall"] <= 2 / 3 < full["recall"] and dropped["coverage"] <= 2 / 3 < full["coverage"]
    assert dropped["density"] > 0.8


def test_copies_are_seen_among_the_samples_and_of_the_training_set():
    train, held_out, fresh = seen(normal(300, 6)), seen(normal(300, 6, 1)), normal(300, 6, 2)
    names = ("duplication", "memorisation")
    good = numbers(seen(fresh), held_out, *names, train=train)
    doubled = numbers(seen(torch.cat([fresh[:150]] * 2)), held_out, *names, train=train)
    stolen = numbers(seen(torch.cat([fresh[:200], train.features[:100]])), held_out, *names, train=train)
    assert good["duplicate-share"] < 0.05 and doubled["duplicate-share"] == 1
    assert good["memorisation-ratio"] == pytest.approx(1, abs=0.15) == doubled["memorisation-ratio"]
    assert stolen["suspicious-share"] >= 1 / 3 > 0.1 > good["suspicious-share"]


def test_by_class_is_each_class_alone():
    samples, real = whole(0), whole(1)
    found = by_class(samples, real, ["frechet-distance", "recall", "label-agreement"])
    assert [(one.of, one.metric) for one in found] == [
        (c, name) for c in range(3) for name in ("frechet-distance", "recall", "label-agreement")
    ]
    alone = measure(samples.of_class(1), real.of_class(1), ["frechet-distance"])[0]
    assert replace(alone, of=1) == found[3] and alone.n == 100 and found[3].label.endswith(", class 1")
    agreement = measure(samples, None, ["label-agreement"])[0].value
    assert sum(one.value for one in found if one.metric == "label-agreement") / 3 == pytest.approx(agreement)
    trained = by_class(samples, real, ["memorisation"], train=whole(2))
    assert [one.of for one in trained] == [0, 0, 1, 1, 2, 2]


def test_classes_with_too_few_are_named():
    labels = LABELS.clone()
    labels[labels == 2] = 1
    labels[:4], labels[4:9] = 2, 7
    few = replace(whole(0), labels=labels)
    with pytest.raises(InputError, match=r"need 20 pictures of each, which these lack: 2 \(4\), 7 \(0\)"):
        by_class(few, whole(1), ["kid"])
    with pytest.raises(InputError, match="labels"):
        by_class(seen(normal(30, 3)), None)


def test_the_name_fid_is_for_the_features_of_its_paper():
    samples, real = whole(0), whole(1)
    with pytest.raises(InputError, match="not over given numbers: ask for frechet-distance"):
        measure(samples, real, ["fid"])
    of_inception = replace(samples, is_inception=True), replace(real, is_inception=True)
    found = measure(*of_inception, ["fid", "frechet-distance", "kid"])
    assert [one.label for one in found] == ["FID", "KID"]
    assert found[0].value == numbers(samples, real, "frechet-distance")["frechet-distance"]
    with pytest.raises(InputError, match="a classifier of the labels"):
        measure(*of_inception, ["label-agreement"])


def test_moments_alone_give_what_they_can():
    bare = replace(whole(0), features=None, scores=None, labels=None)
    assert [one.metric for one in measure(bare, bare)] == ["frechet-distance"]
    assert [one.metric for one in measure(seen(normal(20, 3)), None)] == []
    with pytest.raises(InputError, match="precision-recall cannot be measured without the samples' features"):
        measure(bare, bare, ["recall"])


def test_what_no_class_has_twice_is_left_out_and_refused_where_it_is_named():
    samples = seen(normal(8, 6), torch.arange(8))
    assert not {"diversity", "real-diversity"} & {one.metric for one in measure(samples, whole(1, n=60))}
    assert "diversity" in {one.metric for one in measure(replace(samples, labels=None), whole(1, n=60))}
    for ask in (measure, lambda *sides: wanted([sides[2][0]], *sides[:2])):
        with pytest.raises(InputError, match="diversity cannot be measured without a class with 2 samples and 2 real"):
            ask(samples, whole(1), ["real-diversity"])
    assert wanted(["diversity"], whole(0, n=4), whole(1)) == {"diversity": {"diversity", "real-diversity"}}


def test_names():
    check(["recall", "precision-recall", "fid"])
    with pytest.raises(InputError, match=r"unknown metric 'recal': did you mean 'recall'"):
        measure(whole(0), whole(1), ["kid", "recal"])
    assert (better("frechet-distance"), better("recall"), better("diversity")) == ("lower", "higher", None)
    with pytest.raises(InputError, match="several numbers: precision, recall"):
        better("precision-recall")
    assert [one.metric for one in measure(whole(0), whole(1), ["recall", "kid"])] == ["recall", "kid"]


def test_other_features_are_not_compared():
    other = replace(whole(1), name="other numbers", key="other")
    for metric in ("kid", "frechet-distance"):
        with pytest.raises(InputError, match="given numbers cannot be compared with other numbers"):
            measure(whole(0), other, [metric])
    with pytest.raises(InputError, match="same number of features, not 6 and 5"):
        measure(whole(0), whole(1, d=5), ["frechet-distance"])
    with pytest.raises(InputError, match="kid cannot be measured without the features of the reference"):
        measure(whole(0), None, ["kid"])
