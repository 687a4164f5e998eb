"""Metrics during training: a few samples of the averaged weights, measured every so many steps."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from undiffuse import metrics
from undiffuse.codecs import Pixels
from undiffuse.data import Dataset, Split
from undiffuse.errors import InputError
from undiffuse.examples import centred, conditions_in_turn, drawn
from undiffuse.metrics import classifier as classifiers
from undiffuse.metrics.features import ClassifierFeatures, Features
from undiffuse.metrics.features import Pixels as PooledPixels
from undiffuse.metrics.seen import Seen, look
from undiffuse.pipeline import Pipeline

# metrics that need features alone -> the numbers each gives, and of each whether more of it is better
MONITORED: dict[str, dict[str, bool]] = {
    "frechet-distance": {"frechet-distance": False},
}
HIGHER = {number for numbers in MONITORED.values() for number, higher in numbers.items() if higher}
CLASSIFIER = "features.safetensors"  # of the run: the network that it is measured through from its first session on
MOST = 1 << 28  # bytes of training samples, and of held-out ones, that are looked at


class Monitor:
    """What a run is measured by on the way: the same metrics, samples, features and reference at every step.

    Features are those of a classifier that is trained on the run's own training samples, once, and kept in its folder;
    of data without classes, or too small for it, pooled pixels. Distances go to held-out samples. Samples are those of
    the seeds 0 to n - 1, every class in turn, with the recipe's own sampler, steps and guidance.

    names: of `metrics.METRICS`, those that need features alone; n: samples; folder: of the run.

    Raises: InputError for too few samples on either side, and for a model of latents.
    """

    def __init__(self, names: Sequence[str], n: int, model: Pipeline, split: Split, folder: Path) -> None:
        self.names, self.n, self.split, self.folder = list(names), n, split, folder
        self.shape, self.device = model.shape, model.device
        self.label = model.label if len(model.classes) > 1 else None
        if not isinstance(model.codec, Pixels):
            raise InputError("training.metrics measures pictures, and this model makes latents: leave it out")
        if len(split.train) < 2 or len(split.held_out) < 2:
            raise InputError(
                f"training.metrics needs at least 2 training and 2 held-out samples, not {len(split.train)} and "
                f"{len(split.held_out)}: raise data.held_out, or add data"
            )

    @functools.cached_property
    def features(self) -> Features:
        """What it looks through; the classifier is trained at the first call of the run's first session."""
        if self.label is None or min(self.shape[1:]) < classifiers.SMALLEST_SIDE:
            return PooledPixels()
        path = self.folder / CLASSIFIER
        if not path.is_file():
            train, held_out = (_part(part) for part in (self.split.train, self.split.held_out))
            pictures, kept_out = (centred(part, self.shape, slice(None)).to(self.device) for part in (train, held_out))
            labels, held_labels = (part.conditions[self.label] for part in (train, held_out))
            classes = len(self.split.train.classes[self.label])
            classifiers.train(pictures, labels, classes, held_out=(kept_out, held_labels)).save(path)
        return ClassifierFeatures(classifiers.Classifier.load(path).to(self.device))

    @functools.cached_property
    def reference(self) -> Seen:
        """What the features see in the held-out samples."""
        held_out = _part(self.split.held_out)
        labels = None if self.label is None else held_out.conditions[self.label]
        return look(self.features, centred(held_out, self.shape, slice(None)), labels)

    def __call__(self, model: Pipeline) -> dict[str, Any]:
        """A line of the log: each number by its name, its standard error where there is one, and how many samples."""
        condition = conditions_in_turn(model, self.split, self.n)
        pictures = torch.from_numpy(model.sample(self.n, seed=0, **condition))
        pictures = pictures[:, None] if pictures.ndim == 3 else pictures.movedim(-1, 1)
        labels = None if self.label is None else torch.as_tensor(condition[self.label])
        line: dict[str, Any] = {}
        for found in metrics.measure(look(self.features, pictures, labels), self.reference, self.names):
            line[found.metric] = float(f"{found.value:.6g}")
            if found.error is not None:
                line[f"{found.metric}-error"] = float(f"{found.error:.3g}")
        return {**line, "metrics_samples": self.n}


def _part(dataset: Dataset) -> Dataset:
    """All of a data set, or as many samples as `MOST` bytes hold, always the same."""
    count = max(2, MOST // math.prod(dataset.shape))
    return dataset if len(dataset) <= count else dataset.subset(drawn(len(dataset), count))
