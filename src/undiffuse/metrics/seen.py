"""One pass over pictures: what it leaves feeds every metric of features."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float32, Int64, Shaped, UInt8
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.moments import Moments, check_features

BATCH = 256  # pictures looked at once, where they come in one tensor

Pictures = UInt8[Tensor, "n c h w"]


class Looks(Protocol):
    """What `look` needs of features (`undiffuse.metrics.features.Features` is one).

    name: in words, to be printed beside every number ("64 classifier features"); key: a hash of the network and of
    what is done to a picture before it; is_inception: whether they are those of the FID papers. A call gives features
    (N, d), and scores (N, classes) before the softmax or None.
    """

    name: str
    key: str
    is_inception: bool

    def __call__(self, images: Pictures, /) -> tuple[Tensor, Tensor | None]: ...


@dataclass
class Seen:
    """What one pass over a set of pictures leaves.

    Args:
        name, key, is_inception: of the features, as `Looks` has them.
        moments: of the features, in float64.
        features: (N, d), in the order of the pictures; None where only the moments were kept.
        scores: (N, classes), logits, where the features' network has them.
        labels: (N,), the class of each real picture, or the one that a sample was asked for; None where there are none.
    """

    name: str
    key: str
    moments: Moments
    features: Float32[Tensor, "n d"] | None = None
    scores: Float32[Tensor, "n classes"] | None = None
    labels: Int64[Tensor, " n"] | None = None
    is_inception: bool = False

    def __post_init__(self) -> None:
        for what, rows in (("features", self.features), ("scores", self.scores), ("labels", self.labels)):
            if rows is not None and len(rows) != self.moments.n:
                raise InputError(f"{what} must be one per picture, {self.moments.n}, not {len(rows)}")

    @property
    def n(self) -> int | None:
        """How many pictures; None for moments from a file that does not say."""
        return self.moments.n

    @property
    def settings(self) -> dict[str, str | bool]:
        """What of a measurement's settings comes from the features."""
        return {"features": self.name, "key": self.key, "inception": self.is_inception}

    def of_class(self, label: int) -> "Seen":
        """The pictures of one class alone. Raises: InputError without features and labels."""
        if self.features is None or self.labels is None:
            raise InputError("numbers by class need the features and the labels of every picture")
        return self.rows(self.labels == label)

    def rows(self, which: Shaped[Tensor, " chosen"]) -> "Seen":
        """Some of the pictures alone. Raises: InputError without features."""
        if self.features is None:
            raise InputError("some pictures alone need the features of every picture")
        features = self.features[which]
        scores, labels = (None if kept is None else kept[which] for kept in (self.scores, self.labels))
        return Seen(self.name, self.key, Moments.of(features), features, scores, labels, self.is_inception)

    def merge(self, other: "Seen") -> "Seen":
        """Both sets in one, this one's pictures first: the parts of a set that several processes looked at.

        What only one of the two kept is left out.

        Raises: InputError where the features differ.
        """
        if (self.key, self.name) != (other.key, other.name):
            raise InputError(f"what was seen through {self.name} cannot be merged with what {other.name} saw")
        moments = self.moments.copy()
        moments.merge(other.moments)
        return Seen(
            self.name,
            self.key,
            moments,
            _joined(self.features, other.features),
            _joined(self.scores, other.scores),
            _joined(self.labels, other.labels),
            self.is_inception,
        )


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])


def look(
    features: Looks,
    batches: Pictures | Iterable[Pictures],
    labels: Int64[Tensor, " n"] | None = None,
    keep: bool = True,
    say: Callable[[int], object] = lambda seen: None,
) -> Seen:
    """Every picture through the features, once.

    Args:
        batches: pictures, uint8 (N, C, H, W): one tensor, or any number of them one after the other.
        labels: the class of each (N,), over all batches.
        keep: whether features and scores are kept, N (d + classes) numbers; without, memory does not grow with N, and
            only what needs no more than moments can be measured.
        say: called after every batch with the number of pictures seen.

    Raises: InputError for no picture, for features that are not finite, and for labels of another number.
    """
    moments, kept, scored = None, [], []
    for images in batches.split(BATCH) if isinstance(batches, Tensor) else batches:
        found, scores = features(images)
        check_features(found)
        found = found.detach().cpu().float()
        moments = moments or Moments.empty(found.shape[1])
        moments.update(found)
        if keep:
            kept.append(found)
            scored += [] if scores is None else [scores.detach().cpu().float()]
        say(moments.n or 0)
    if moments is None:
        raise InputError("there is no picture to look at")
    rows, scores = torch.cat(kept) if keep else None, torch.cat(scored) if scored else None
    return Seen(features.name, features.key, moments, rows, scores, labels, features.is_inception)
