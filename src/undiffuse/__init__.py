"""undiffuse: train, sample and evaluate diffusion models.

    x_t = alpha(t) x_0 + sigma(t) noise,     t in [0, 1], 0 = data, 1 = noise

Six nouns: Schedule, Prediction, Denoiser, Guidance, Sampler, Objective. See docs/architecture.md.
"""

from undiffuse import exact, guidance, likelihood, networks, noise, objective, prediction, samplers, schedule
from undiffuse.denoiser import Denoiser, Estimate
from undiffuse.errors import InputError
from undiffuse.formats import load
from undiffuse.objective import Objective
from undiffuse.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = [
    "Denoiser", "Estimate", "InputError", "Objective", "Pipeline", "exact", "guidance", "likelihood", "load",
    "networks", "noise", "objective", "prediction", "samplers", "schedule",
]  # fmt: skip
