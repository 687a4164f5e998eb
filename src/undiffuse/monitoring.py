"""Metrics during training: a few samples of the averaged weights, measured every so many steps."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from undiffuse import metrics
from undiffuse.config import VALIDATION_LOSS, Training
from undiffuse.data import Dataset, Split
from undiffuse.errors import InputError
from undiffuse.examples import centred, conditions_in_turn, drawn
from undiffuse.metrics import classifier as classifiers
from undiffuse.metrics.features import ClassifierFeatures, Features, Pixels
from undiffuse.metrics.moments import Moments
from undiffuse.metrics.seen import Seen, look
from undiffuse.metrics.suite import NUMBERS
from undiffuse.pipeline import BEST, Pipeline
from undiffuse.training import Best

CLASSIFIER = "features.safetensors"  # of the run: the network that it is measured through from its first session on
MOST = 1 << 28  # bytes of training samples, and of held-out ones, that are looked at
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
        self.numbers = self._try(min(TRIED, len(split.held_out)))
        if (folder / CLASSIFIER).is_file():
            self.features  # noqa: B018  read now, so that a damaged file is found before any work

    @property
    def _classified(self) -> bool:
        return self.label is not None and min(self.shape[1:]) >= classifiers.SMALLEST_SIDE

    def _try(self, reference_n: int) -> list[str]:
        """What is measured, found out on random numbers, before any work."""
        sides = []
        for seed, n in enumerate((self.n, reference_n, TRIED)):
            found = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
            labels = None if self.label is None else torch.arange(n) % 2
            sides.append(Seen("", "", Moments.of(found), found, found[:, :2] if self._classified else None, labels))
        try:
            return [found.metric for found in metrics.measure(sides[0], sides[1], self.names, sides[2])]
        except InputError as error:
            through = "a classifier of the run's own data" if self._classified else "pixels: there are no classes"
            raise InputError(f"training.metrics, of {self.n} samples through {through}: {error}") from error

    @functools.cached_property
    def features(self) -> Features:
        """What it looks through; the classifier is trained at the first call of the run's first session."""
        if not self._classified:
            return Pixels()
        assert self.label is not None
        path = self.folder / CLASSIFIER
        if not path.is_file():
            (pictures, labels), held_out = (
                (centred(part, self.shape, slice(None)).to(self.device), part.conditions[self.label].to(self.device))
                for part in (_part(self.split.train), _part(self.split.held_out))
            )
            classes = len(self.split.train.classes[self.label])
            classifiers.train(pictures, labels, classes, held_out=held_out).save(path)
        return ClassifierFeatures(classifiers.Classifier.load(path).to(self.device))

    @functools.cached_property
    def reference(self) -> Seen:
        """What the features see in the held-out samples."""
        return self._seen(self.split.held_out)

    @functools.cached_property
    def train(self) -> Seen | None:
        """The same of the training samples, for what compares with them."""
        asked = (metrics.METRICS[NUMBERS.get(name, name)] for name in self.names)
        return self._seen(self.split.train) if any("train" in metric.needs for metric in asked) else None

    def _seen(self, dataset: Dataset) -> Seen:
        part = _part(dataset)
        labels = None if self.label is None else part.conditions[self.label]
        return look(self.features, centred(part, self.shape, slice(None)), labels)

    def __call__(self, model: Pipeline) -> dict[str, Any]:
        """A line of the log: each number by its name, its standard error where there is one, and how many samples."""
        condition = conditions_in_turn(model, self.split, self.n)
        pictures = torch.from_numpy(model.sample(self.n, seed=0, **condition))
        pictures = pictures[:, None] if pictures.ndim == 3 else pictures.movedim(-1, 1)
        labels = None if self.label is None else torch.as_tensor(condition[self.label])
        samples, line = look(self.features, pictures, labels), dict[str, Any]()
        for found in metrics.measure(samples, self.reference, self.names, self.train):
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


def _part(dataset: Dataset) -> Dataset:
    """All of a data set, or as many samples as `MOST` bytes hold, always the same."""
    count = max(2, MOST // math.prod(dataset.shape))
    return dataset if len(dataset) <= count else dataset.subset(drawn(len(dataset), count))
