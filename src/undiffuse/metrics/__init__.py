"""Metrics: what a set of samples is worth, each number with its sample size and its error.

A leaf of the package: tensors in, numbers out. To add a metric, write one file and one line in `METRICS` (suite.py).
"""

from undiffuse.metrics.agreement import label_agreement, wilson_interval
from undiffuse.metrics.classifier import Classifier
from undiffuse.metrics.diversity import measure_draw_diversity, pairwise_distance
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.inception_score import inception_score
from undiffuse.metrics.kernel import kernel_distance
from undiffuse.metrics.measurement import Measurement
from undiffuse.metrics.moments import Moments
from undiffuse.metrics.neighbours import memorisation, nearest, nearest_other
from undiffuse.metrics.precision_recall import density_coverage, precision_recall
from undiffuse.metrics.psnr import measure_psnr, psnr
from undiffuse.metrics.seen import Seen, look
from undiffuse.metrics.spectrum import radial_power
from undiffuse.metrics.ssim import measure_ssim, ssim
from undiffuse.metrics.suite import METRICS, Metric, better, by_class, check, measure

__all__ = [
    "METRICS",
    "Classifier",
    "Measurement",
    "Metric",
    "Moments",
    "Seen",
    "better",
    "by_class",
    "check",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "label_agreement",
    "look",
    "measure",
    "measure_draw_diversity",
    "measure_psnr",
    "measure_ssim",
    "memorisation",
    "nearest",
    "nearest_other",
    "pairwise_distance",
    "precision_recall",
    "psnr",
    "radial_power",
    "ssim",
    "wilson_interval",
]
