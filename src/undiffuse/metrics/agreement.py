"""Do samples show the class that was asked for?"""

import math
from typing import Any

from jaxtyping import Int64, UInt8
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.classifier import Classifier, check_labels
from undiffuse.metrics.measurement import Measurement, Z
from undiffuse.metrics.seen import Seen


def label_agreement(
    classifier: Classifier, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
) -> dict[str, Any]:
    """The share of samples that a classifier trained on real images recognizes as the class asked for.

    The classifier's own held-out accuracy bounds what the number can mean. Guidance raises it at the price of
    variety, so read it beside a distance between the distributions.

    Args:
        images: samples, uint8 (N, C, H, W), N >= 1.
        labels: the class each was asked for (N,).

    Returns: `share` in [0, 1], `n`, `interval` (Wilson, 95 %), and `per_class`: class -> its `share` and `n`, for the
        classes that were asked for.

    Raises: InputError for images or labels of a wrong type, shape or range.
    """
    check_labels(images, labels, classifier.classes)
    right = classifier.predict(images) == labels
    by_class = {int(c): right[labels == c] for c in labels.unique()}
    return {
        "share": right.double().mean().item(),
        "n": len(images),
        "interval": wilson_interval(int(right.sum()), len(images)),
        "per_class": {c: {"share": hits.double().mean().item(), "n": len(hits)} for c, hits in by_class.items()},
    }


def measure_label_agreement(samples: Seen, reference: Seen | None = None) -> list[Measurement]:
    """The same share from scores that were kept, those of a classifier of the labels' own classes."""
    assert samples.scores is not None and samples.labels is not None
    check_labels(samples.scores, samples.labels, samples.scores.shape[1])
    right, n = int((samples.scores.argmax(1) == samples.labels).sum()), len(samples.labels)
    error = math.sqrt(right / n * (1 - right / n) / n)
    between = wilson_interval(right, n)
    return [Measurement("label-agreement", right / n, error, "over samples", between, n, None, samples.settings)]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, within [0, 1] and sound for shares near 0 and 1.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),        z = 1.96

    Raises: InputError unless 0 <= successes <= n and n >= 1.

    Reference: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"successes must lie in [0, n] with n >= 1, not {successes} of {n}")
    share, shrink = successes / n, 1 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / shrink
    half = Z * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5 / shrink
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)  # exact at the ends
