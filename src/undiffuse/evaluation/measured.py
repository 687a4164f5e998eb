"""The table of metrics: samples against real images, what real images have, and the same by class."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undiffuse import metrics, plots
from undiffuse.errors import InputError, unknown
from undiffuse.evaluation.subject import Subject
from undiffuse.judge import EMBEDDED, REFERENCE, Judge
from undiffuse.metrics import Measurement, Seen
from undiffuse.metrics.suite import METRICS, NUMBERS, wanted
from undiffuse.plots import Panel, Picture
from undiffuse.reconstruction import OF_RESTORATIONS

OF_MODELS = ("bits-per-dim", "bound")  # of the model and held-out samples, and not of samples: `likely`
MEMORISATION, BALLS = "memorisation", "precision-recall"
OF_SAMPLES_ALONE = {"label-agreement", "pixel-memorisation", "memorisation-ratio", "real-diversity", "suspicious-share"}
BY_CLASS = ("frechet-distance", "precision", "recall", "coverage", "diversity", "label-agreement")


def checked(names: Sequence[str] | None) -> list[str] | None:
    """The names of metrics, once each. Raises: InputError for one that is not known, with the nearest that is."""
    if names is None:
        return None
    known = [*METRICS, *NUMBERS, *OF_MODELS, *OF_RESTORATIONS]
    for name in names:
        if name not in known:
            raise unknown("metric", name, dict.fromkeys(known))
    return list(dict.fromkeys(names))


def features(names: Sequence[str] | None, given: str | None) -> str:
    """The features that are asked for; FID without a word is over its own."""
    if given is not None:
        return given
    return "inception" if names and "fid" in names else EMBEDDED


def check(names: Sequence[str] | None, judge: Judge, n: int, labels: Tensor | None) -> None:
    """Find out before any sampling whether these can be measured of n samples. Raises: InputError."""
    seen = judge.see(judge.held_out[:2])
    assert seen.features is not None
    n = judge.equal(n)
    rows = torch.arange(n) % 2  # what stands in them is of no account
    samples = replace(seen.rows(rows), labels=None if labels is None else labels[:n])
    wanted(_of_samples(names or ()), samples, judge.reference, samples)


def measure(subject: Subject, names: Sequence[str] | None, pictures: dict[str, Picture]) -> dict[str, Any]:
    """Numbers by the names, by default all that the features allow; "measurements" is drawn.

    Each row carries how the samples were made.
    """
    judge, labels = subject.judge, subject.labels
    equal = judge.equal(len(subject.images))
    samples = judge.see(subject.images[:equal], None if labels is None else labels[:equal])
    asked = None if names is None else _of_samples(names)
    train = _train(judge, asked)
    found = _at_equal_numbers(samples, judge, asked, train)
    if asked is None or MEMORISATION in asked:
        found.append(_copying(judge, subject.images[:equal]))
    real = _real(judge, equal, [m.metric for m in found])
    seeds = {"seeds": f"0-{equal - 1}"}
    rows = [{**measurement.to_json(), **subject.protocol(), **seeds} for measurement in found]
    classes, why_not = _by_class(samples, judge, [m.metric for m in found])
    if found:
        pictures["measurements"] = plots.measurements([_panel(m, real.get(m.metric, []), samples.name) for m in found])
    return {
        "measurements": rows,
        "real": real,
        "measured_n": equal,
        "by_class": [{**measurement.to_json(), **subject.protocol(), **seeds} for measurement in classes],
        "by_class_note": why_not,
        "classes": dict(enumerate(subject.model.classes)),
    }


def _of_samples(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in (*OF_MODELS, *OF_RESTORATIONS)]


def _at_equal_numbers(
    samples: Seen, judge: Judge, names: Sequence[str] | None, train: Seen | None = None
) -> list[Measurement]:
    """The metrics against all real images, but for those of balls against as many as there are samples.

    A ball is as large as its set is sparse: of n samples among many more real images none but the nearest would be
    covered, and a perfect model would have a coverage of 1 - (N / (N + n))^k.
    """
    if names is None:
        names = [name for name, metric in METRICS.items() if not metric.lacks(samples, judge.reference, train)]
    balls = [name for name in names if NUMBERS.get(name, name) == BALLS]
    others = [name for name in names if name not in balls]
    found = metrics.measure(samples, judge.reference, others, train)
    found += metrics.measure(samples, judge.equal_reference(samples.n or 0), balls)
    order = [NUMBERS.get(name, name) for name in names]
    return sorted(found, key=lambda measurement: order.index(NUMBERS[measurement.metric]))


def _train(judge: Judge, names: Sequence[str] | None) -> Seen | None:
    """What the features see in the training images, where memorisation is to be measured through them.

    Through a network of the size of Inception that takes longer than all else, so then only where it is asked for.
    """
    asked = names is not None and MEMORISATION in {NUMBERS.get(name, name) for name in names}
    return judge.seen_train() if asked or (names is None and judge.embedded) else None


def _copying(judge: Judge, images: Tensor) -> Measurement:
    """The same in pixels."""
    found = metrics.memorisation(images, judge.train, judge.held_out[:REFERENCE])
    settings = {"features": "pixels", "train_n": found["train_n"]}
    return Measurement(
        "pixel-memorisation", found["ratio"], found["ratio_error"], "bootstrap", found["ratio_interval"],
        found["samples_n"], found["held_out_n"], settings,
    )  # fmt: skip


def _real(judge: Judge, n: int, names: Sequence[str]) -> dict[str, list[float]]:
    """What as many real training images have, by metric, a value a draw; of the classifier, what is held out."""
    asked = [name for name in dict.fromkeys(names) if name not in OF_SAMPLES_ALONE]
    values: dict[str, list[float]] = {name: [] for name in asked}
    for draw in judge.draws(n) if asked else []:
        # classes of few training images have no pairs, say
        possible = [name for name in asked if not METRICS[NUMBERS[name]].lacks(draw, judge.reference)]
        for measurement in _at_equal_numbers(draw, judge, possible):
            if measurement.metric in values:  # "diversity" is the name of two numbers
                values[measurement.metric].append(measurement.value)
    if "label-agreement" in names and judge.classifier is not None and judge.classifier.held_out_accuracy is not None:
        values["label-agreement"] = [judge.classifier.held_out_accuracy]
    return {name: draws for name, draws in values.items() if draws}


def _by_class(samples: Seen, judge: Judge, names: Sequence[str]) -> tuple[list[Measurement], str]:
    """The metrics of each class alone, and why there are none."""
    asked = [name for name in BY_CLASS if name in names]
    if samples.labels is None or not asked:
        return [], ""
    balls = [name for name in asked if NUMBERS[name] == BALLS]
    others = [name for name in asked if name not in balls]
    try:
        found = metrics.by_class(samples, judge.reference, others) if others else []
        return [*found, *(metrics.by_class(samples, judge.equal_reference(samples.n or 0), balls) if balls else [])], ""
    except InputError as error:
        return [], str(error)


def _panel(measurement: Measurement, draws: Sequence[float], features: str) -> Panel:
    title = measurement.label.replace(f" over {features}", "")
    between = measurement.interval
    real = (min(draws), sum(draws) / len(draws), max(draws)) if draws else None
    return Panel(title, [("samples", measurement.value, between)], real)
