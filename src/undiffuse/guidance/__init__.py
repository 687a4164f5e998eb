"""Denoiser -> Denoiser: wrappers that steer."""

from undiffuse.guidance.base import Guidance
from undiffuse.guidance.classifier_free import ClassifierFree

GUIDANCES: dict[str, type[Guidance]] = {"classifier-free": ClassifierFree}

__all__ = ["GUIDANCES", "ClassifierFree", "Guidance"]
