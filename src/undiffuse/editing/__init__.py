"""Denoiser -> edited samples: interpolation, inversion."""

from undiffuse.editing.interpolate import spherical
from undiffuse.editing.invert import Inversion, invert

__all__ = ["Inversion", "invert", "spherical"]
