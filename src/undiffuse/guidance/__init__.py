"""Denoiser -> Denoiser: wrappers that steer."""

from undiffuse.guidance.base import Guidance
from undiffuse.guidance.classifier_free import ClassifierFree
from undiffuse.guidance.measurement import Blurred, Downsampled, Masked, Measurement, Misfit
from undiffuse.guidance.posterior import Posterior
from undiffuse.guidance.steered import Steered

GUIDANCES: dict[str, type[Guidance]] = {
    "classifier-free": ClassifierFree,
    "posterior": Posterior,
    "steered": Steered,
}

__all__ = [
    "GUIDANCES",
    "Blurred",
    "ClassifierFree",
    "Downsampled",
    "Guidance",
    "Masked",
    "Measurement",
    "Misfit",
    "Posterior",
    "Steered",
]
