"""Metrics: what a set of samples is worth, each number with its sample size.

A leaf of the package: tensors in, numbers out. To add a metric, write one file and one line in `METRICS`.
"""

from collections.abc import Callable
from typing import Any

from undiffuse.metrics.agreement import label_agreement, wilson_interval
from undiffuse.metrics.classifier import Classifier
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.neighbours import memorisation, nearest
from undiffuse.metrics.precision_recall import precision_recall
from undiffuse.metrics.psnr import mean_psnr, psnr

METRICS: dict[str, Callable[..., Any]] = {
    "frechet-distance": frechet_distance,
    "label-agreement": label_agreement,
    "memorisation": memorisation,
    "precision-recall": precision_recall,
    "psnr": mean_psnr,
}

__all__ = [
    "METRICS",
    "Classifier",
    "frechet_distance",
    "label_agreement",
    "mean_psnr",
    "memorisation",
    "nearest",
    "precision_recall",
    "psnr",
    "wilson_interval",
]
