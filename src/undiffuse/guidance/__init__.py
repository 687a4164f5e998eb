"""Denoiser -> Denoiser: wrappers that steer."""

from undiffuse.denoiser import BaseDenoiser
from undiffuse.guidance.classifier_free import ClassifierFree

GUIDANCES: dict[str, type[BaseDenoiser]] = {"classifier-free": ClassifierFree}

__all__ = ["GUIDANCES", "ClassifierFree"]
