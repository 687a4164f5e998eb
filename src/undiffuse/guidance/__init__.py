"""Denoiser -> Denoiser: wrappers that steer."""

from undiffuse.guidance.autoguidance import Autoguidance
from undiffuse.guidance.base import Guidance
from undiffuse.guidance.classifier import Classifier, NoisyClassifier
from undiffuse.guidance.classifier_free import ClassifierFree
from undiffuse.guidance.composed import Composed
from undiffuse.guidance.interval import Interval
from undiffuse.guidance.measurement import Blurred, Downsampled, Masked, Measurement, Misfit
from undiffuse.guidance.posterior import Posterior
from undiffuse.guidance.rescale import Rescaled
from undiffuse.guidance.steered import Steered
from undiffuse.guidance.threshold import DynamicThreshold, StaticThreshold

GUIDANCES: dict[str, type[Guidance]] = {
    "classifier-free": ClassifierFree,
    "composed": Composed,
    "autoguidance": Autoguidance,
    "classifier": Classifier,
    "steered": Steered,
    "posterior": Posterior,
    "interval": Interval,
    "rescale": Rescaled,
    "static-threshold": StaticThreshold,
    "dynamic-threshold": DynamicThreshold,
}

__all__ = [
    "GUIDANCES",
    "Autoguidance",
    "Blurred",
    "Classifier",
    "ClassifierFree",
    "Composed",
    "Downsampled",
    "DynamicThreshold",
    "Guidance",
    "Interval",
    "Masked",
    "Measurement",
    "Misfit",
    "NoisyClassifier",
    "Posterior",
    "Rescaled",
    "StaticThreshold",
    "Steered",
]
