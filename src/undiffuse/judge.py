"""What pictures are measured through, and the real ones that they are measured against."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse import metrics
from undiffuse.data import Dataset, Split
from undiffuse.data.dataset import turns
from undiffuse.errors import InputError
from undiffuse.examples import centred, drawn
from undiffuse.files import cache_folder
from undiffuse.metrics import Measurement, statistics
from undiffuse.metrics import classifier as classifiers
from undiffuse.metrics import features as networks
from undiffuse.metrics.features.base import fingerprint
from undiffuse.metrics.frechet import measure_frechet_distance
from undiffuse.metrics.seen import Seen, look

EMBEDDED = "embedded"  # a classifier trained on the data at hand; without labels, pooled pixels
REFERENCE = 10_000  # held-out images that distances are measured to, at most
MOST_JUDGED = 1 << 30  # bytes of training samples, and of held-out ones, that samples are compared with
DRAWS, MOST_DRAWN = 4, 2_000  # of real images, to compare with: so many times, while they are so few


class Judge:
    """Features, and what they see in the held-out split, which neither the model nor they have been trained on.

    features: a name or a file, as `metrics.features.named` takes it; "embedded": a classifier that is trained on the
    real training split and kept for the next evaluation of the same data, or pooled pixels where there are no labels.
    moments: an .npz of mu and sigma that stands for the real images in place of the held-out split. kept: the file of
    the classifier, in place of one in the cache folder that all runs on the same data share. device: of the features.

    Of a set that is larger than `MOST_JUDGED`, a part stands for the whole, whether it is kept in memory or not.

    Raises: InputError for too few samples, and for features and moments that cannot be read or do not fit.
    """

    def __init__(
        self,
        split: Split,
        shape: Sequence[int],
        label: str | None,
        seed: int = 0,
        features: str = EMBEDDED,
        moments: Path | None = None,
        kept: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        split = Split(*(_judged_by(part) for part in (split.train, split.held_out)))
        self.train, self.held_out = (centred(part, shape, slice(None)) for part in (split.train, split.held_out))
        if len(self.held_out) < 2 or len(self.train) < 2:
            raise InputError(
                f"an evaluation needs at least 2 training and 2 held-out samples, not {len(self.train)} and "
                f"{len(self.held_out)}: raise data.held_out, or add data"
            )
        self.classifier: classifiers.Classifier | None = None
        if label is not None and is_classified(shape):
            labels = (split.train.conditions[label], split.held_out.conditions[label])
            self.classifier = self._classifier(labels, len(split.train.classes[label]), seed, kept, device)
        self.features = self._features(features)
        self.through = self.features.name
        if isinstance(self.features, networks.ClassifierFeatures):
            self.through += f", of {self.features.classifier.describe()}"
        labels_seen = None if label is None else split.held_out.conditions[label][:REFERENCE]
        self.reference: Seen
        if moments is None:
            real = self.held_out[:REFERENCE]
            self.reference = statistics.reference(self.features, real, labels_seen)
            self.reference_name = f"{len(real):,} held-out images of {split.held_out.name}"
            self.reference_key = statistics.data_hash(real)[:16]
        else:
            self.reference = statistics.imported(moments, self.features)
            d, ours = len(self.reference.moments.mean), len(self.see(self.held_out[:2]).moments.mean)
            if d != ours:
                raise InputError(f"{moments} is over {d} features a picture, but there are {ours} {self.features.name}")
            self.reference_name = str(moments)
            self.reference_key = fingerprint(self.reference.moments.mean.numpy().tobytes())[:16]
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        if label is not None:  # classes in turn, as the samples have them: other proportions would be further away
            order = order[torch.argsort(turns(split.train.conditions[label][order]), stable=True)]
        self.shuffled_train = self.train[order]
        self.shuffled_labels = None if label is None else split.train.conditions[label][order]

    def _features(self, text: str) -> networks.Features:
        if text != EMBEDDED and not (text == "classifier" and self.classifier is not None):
            return networks.named(text)  # which says the device where it matters, "inception:device=cuda"
        return networks.Pixels() if self.classifier is None else networks.ClassifierFeatures(self.classifier)

    def see(self, images: Tensor, labels: Tensor | None = None) -> Seen:
        """What the features see in uint8 pictures (N, C, H, W)."""
        return look(self.features, images, labels)

    def _classifier(
        self, labels: tuple[Tensor, Tensor], classes: int, seed: int, kept: Path | None, device: torch.device | str
    ) -> classifiers.Classifier:
        """The classifier of this data: from its file where it has been trained before. Raises: InputError."""
        path = kept
        if path is None:
            data = [statistics.data_hash(part) for part in (self.train, self.held_out)]
            settings = {name: value for name, value in sorted(vars(classifiers).items()) if name.isupper()}
            said = json.dumps([classes, seed, settings])
            name = fingerprint(*data, *(part.numpy().tobytes() for part in labels), said)
            path = cache_folder() / "classifiers" / f"{name}.safetensors"
        if path.is_file():
            with contextlib.suppress(InputError) if kept is None else contextlib.nullcontext():
                return classifiers.Classifier.load(path).to(device)
        train, held_out = (
            (part.to(device), of.to(device)) for part, of in zip((self.train, self.held_out), labels, strict=True)
        )
        classifier = classifiers.train(*train, classes, held_out=held_out, seed=seed)
        # a cache that cannot be written costs time, and no more
        with contextlib.suppress(InputError) if kept is None else contextlib.nullcontext():
            classifier.save(path)
        return classifier

    @property
    def embedded(self) -> bool:
        """Whether the features need no published network, so that looking costs little."""
        return isinstance(self.features, networks.ClassifierFeatures | networks.Pixels)

    def seen_train(self) -> Seen:
        """What they see in the training images, or in the first `REFERENCE` of them in a random order."""
        return statistics.reference(self.features, self.shuffled_train[:REFERENCE])

    def equal(self, n: int) -> int:
        """n, or how many real images there are of either part to compare samples with, where they are fewer."""
        return min(n, len(self.train), len(self.held_out))

    def equal_reference(self, n: int) -> Seen:
        """n of the real images, or all where they are fewer, classes in turn: balls depend on how many there are.

        Moments that stand for the real images are handed on as they are.
        """
        real = self.reference
        if real.features is None or n >= len(real.features):
            return real
        order = torch.randperm(len(real.features), generator=torch.Generator().manual_seed(0))
        if real.labels is not None:
            order = order[torch.argsort(turns(real.labels[order]), stable=True)]
        return real.rows(order[:n])

    def distance(self, images: Tensor) -> Measurement:
        """Frechet distance of images to the real ones, with its error."""
        return measure_frechet_distance(self.see(images), self.reference)[0]

    def draws(self, n: int) -> list[Seen]:
        """n real training images, seen: up to four disjoint draws with classes in equal numbers.

        What to compare with. The embedded classifier has been trained on these images, which may set them a little
        apart from held-out ones.
        """
        count = max(1, min(DRAWS, len(self.shuffled_train) // n)) if n <= MOST_DRAWN else 1
        rows = [slice(i * n, (i + 1) * n) for i in range(count)]
        labels = self.shuffled_labels
        return [self.see(self.shuffled_train[few], None if labels is None else labels[few]) for few in rows]

    def real(self, n: int) -> list[float]:
        """The Frechet distance of each of these draws."""
        return [metrics.frechet_distance(seen.moments, self.reference.moments) for seen in self.draws(n)]


def is_classified(shape: Sequence[int]) -> bool:
    """Whether pictures (C, H, W) are large enough for the embedded classifier; smaller ones are looked at as pixels."""
    return min(shape[1:]) >= classifiers.SMALLEST_SIDE


def _judged_by(dataset: Dataset) -> Dataset:
    """All of a data set, or as many samples as `MOST_JUDGED` bytes hold, always the same; they are read into memory."""
    count = max(2, MOST_JUDGED // math.prod(dataset.shape))
    if len(dataset) <= count:
        return dataset
    return dataset.subset(drawn(len(dataset), count))


def as_tensor(images: Any) -> Tensor:
    """uint8 (N, H, W[, C]) as a tensor (N, C, H, W)."""
    tensor = torch.from_numpy(images)
    return tensor[:, None] if tensor.ndim == 3 else tensor.movedim(-1, 1)
