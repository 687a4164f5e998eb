"""Features that need no published network: a classifier trained on the data at hand, and the pixels themselves."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from undiffuse.errors import InputError
from undiffuse.metrics.classifier import FEATURES, Classifier
from undiffuse.metrics.features.base import Features, Images, fingerprint


class ClassifierFeatures(Features):
    """The activations below the scores of a `metrics.Classifier`, and its scores.

    Args:
        classifier: a trained one, or the file that its `save` wrote. It stays on the device where it is.

    Raises: InputError for a file that is missing, damaged, or no classifier.
    """

    dim = FEATURES
    batch_size = 512

    def __init__(self, classifier: Classifier | str | Path) -> None:
        self.classifier = classifier if isinstance(classifier, Classifier) else Classifier.load(classifier)
        self.classifier.eval()
        self.device = self.classifier.head.weight.device
        self.name = f"{FEATURES} classifier features"
        self.key = fingerprint("classifier", self.classifier)

    def embed(self, images: Images) -> tuple[Tensor, Tensor]:
        if tuple(images.shape[1:]) != self.classifier.shape:
            raise InputError(f"this classifier takes images {self.classifier.shape}, not {tuple(images.shape[1:])}")
        x = images.float().div(255).contiguous(memory_format=torch.channels_last)
        features = self.classifier.body(x)
        return features, self.classifier.head(features)


class Pixels(Features):
    """The pixels in [0, 1], averaged over boxes down to at most `side` a side: blind to all that is finer.

    Raises: InputError for a side below 1.
    """

    batch_size = 4096

    def __init__(self, side: int = 8) -> None:
        if side < 1:
            raise InputError(f"pooled pixels need a side of 1 or more, not {side}")
        self.side = side
        self.name = "pooled pixels" if side == 8 else f"pooled pixels ({side}x{side})"
        self.key = fingerprint("pixels", str(side))

    def embed(self, images: Images) -> tuple[Tensor, None]:
        height, width = images.shape[-2:]
        pooled = F.adaptive_avg_pool2d(images.float() / 255, (min(self.side, height), min(self.side, width)))
        return pooled.flatten(1), None
