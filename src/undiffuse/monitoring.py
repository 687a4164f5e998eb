"""Metrics during training: a few samples of the averaged weights, measured every so many steps."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse import metrics
from undiffuse.config import VALIDATION_LOSS, Training
from undiffuse.data import Split
from undiffuse.errors import InputError
from undiffuse.examples import conditions_in_turn
from undiffuse.judge import REFERENCE, Judge, as_tensor, is_classified
from undiffuse.metrics import Classifier
from undiffuse.metrics.moments import Moments
from undiffuse.metrics.seen import Seen
from undiffuse.metrics.suite import NUMBERS, wanted
from undiffuse.pipeline import BEST, Pipeline
from undiffuse.training import Best

CLASSIFIER = "features.safetensors"  # of the run: the network that it is measured through from its first session on
TRIED = 50  # made-up reference samples, enough for every metric


class Monitor:
    """What a run is measured by on the way: the same metrics, samples, features and reference at every step.

    Features are those of a classifier that is trained on the run's own training samples, once, and kept in its folder;
    of data without classes, or too small for it, pooled pixels. Distances go to held-out samples. Samples are those of
    the seeds 0 to n - 1, every class in turn, with the recipe's own sampler, steps and guidance.

    names: of `metrics.METRICS`, or of single numbers; n: samples; folder: of the run; numbers: the names of what is
    measured.

    Raises: InputError for what cannot be measured of this model, on so many samples or on these data.
    """

    def __init__(self, names: Sequence[str], n: int, model: Pipeline, split: Split, folder: Path) -> None:
        self.names, self.n, self.split, self.folder = list(names), n, split, folder
        self.shape, self.device = model.shape, model.device
        self.label = model.label if len(model.classes) > 1 else None
        if len(split.train) < 2 or len(split.held_out) < 2:
            raise InputError(
                f"training.metrics needs at least 2 training and 2 held-out samples, not {len(split.train)} and "
                f"{len(split.held_out)}: raise data.held_out, or add data"
            )
        self.numbers = self._try(model)
        if (folder / CLASSIFIER).is_file():
            Classifier.load(folder / CLASSIFIER)  # so that a damaged file is found before any work

    @property
    def _classified(self) -> bool:
        return self.label is not None and is_classified(self.shape)

    def _try(self, model: Pipeline) -> list[str]:
        """What is measured, found out on random numbers, before any work: under the real labels, then on a few."""
        held = self.split.held_out
        asked = self._labels(conditions_in_turn(model, self.split, self.n))
        real = None if self.label is None else held.conditions[self.label][:REFERENCE]
        samples, train = (self._made_up(n, seed) for seed, n in enumerate((self.n, TRIED)))
        reference = self._made_up(min(REFERENCE, len(held)), 2)
        few = self._made_up(min(TRIED, len(held)), 2)
        try:
            wanted(self.names, replace(samples, labels=asked), replace(reference, labels=real), train)
            return [found.metric for found in metrics.measure(samples, few, self.names, train)]
        except InputError as error:
            through = "a classifier of the run's own data" if self._classified else "pixels: there are no classes"
            raise InputError(f"training.metrics, of {self.n} samples through {through}: {error}") from error

    def _made_up(self, n: int, seed: int) -> Seen:
        """Random numbers, of one class where there are classes."""
        found = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
        labels = None if self.label is None else torch.zeros(n, dtype=torch.int64)
        scores = found[:, :2] if self._classified else None
        return Seen("features of the run's own", "", Moments.of(found), found, scores, labels)

    def _labels(self, condition: dict[str, Any]) -> Tensor | None:
        return None if self.label is None else torch.as_tensor(condition[self.label])

    @functools.cached_property
    def judge(self) -> Judge:
        """What it looks through, and the real images; a classifier is trained in the run's first session."""
        return Judge(self.split, self.shape, self.label, kept=self.folder / CLASSIFIER, device=self.device)

    @functools.cached_property
    def train(self) -> Seen | None:
        """What is seen of training images, for what compares with them."""
        asked = (metrics.METRICS[NUMBERS.get(name, name)] for name in self.names)
        return self.judge.seen_train() if any("train" in metric.needs for metric in asked) else None

    def __call__(self, model: Pipeline) -> dict[str, Any]:
        """A line of the log: each number by its name, its standard error where there is one, and how many samples."""
        condition = conditions_in_turn(model, self.split, self.n)
        pictures = as_tensor(model.sample(self.n, seed=0, **condition))
        samples, line = self.judge.see(pictures, self._labels(condition)), dict[str, Any]()
        for found in metrics.measure(samples, self.judge.reference, self.names, self.train):
            line[found.metric] = float(f"{found.value:.6g}")
            if found.error is not None:
                line[f"{found.metric}-error"] = float(f"{found.error:.3g}")
        return {**line, "metrics_samples": self.n}


def monitored(training: Training, model: Pipeline, split: Split, folder: Path) -> tuple[Monitor | None, Best | None]:
    """What measures a run on the way, and what keeps its best weights, where they are asked for.

    Raises: InputError as `Monitor`, and for weights that are to be best in what is not measured.
    """
    monitor = Monitor(training.metrics, training.metrics_samples, model, split, folder) if training.metrics else None
    measured, best = monitor.numbers if monitor else [], training.best
    if best is None or best == VALIDATION_LOSS:
        return monitor, None if best is None else Best(folder / BEST, best)
    if best not in measured:
        found = f"measured are {', '.join(measured)}" if measured else "nothing is"
        raise InputError(f"training.best={best} is not measured by training.metrics=[...]: {found}")
    return monitor, Best(folder / BEST, best, metrics.better(best) == "higher")
