"""A model ready to use: codec + conditioner + denoiser + defaults of sampling. What `load` gives back."""

from undiffuse.pipeline.assemble import assemble
from undiffuse.pipeline.base import DEFAULTS, Guided, Images, Pipeline, Steering
from undiffuse.pipeline.folder import BEST, load, read_model_spec, read_spec, snapshots

__all__ = [
    "BEST",
    "DEFAULTS",
    "Guided",
    "Images",
    "Pipeline",
    "Steering",
    "assemble",
    "load",
    "read_model_spec",
    "read_spec",
    "snapshots",
]
