"""Denoiser -> Denoiser: wrappers that steer."""

from undiffuse.guidance.base import Guidance
from undiffuse.guidance.classifier import Classifier, NoisyClassifier
from undiffuse.guidance.classifier_free import ClassifierFree

GUIDANCES: dict[str, type[Guidance]] = {"classifier-free": ClassifierFree, "classifier": Classifier}

__all__ = ["GUIDANCES", "Classifier", "ClassifierFree", "Guidance", "NoisyClassifier"]
