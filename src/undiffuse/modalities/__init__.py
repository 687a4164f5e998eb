"""Kinds of data: how each is shown and written."""

from undiffuse.modalities import image

__all__ = ["image"]
