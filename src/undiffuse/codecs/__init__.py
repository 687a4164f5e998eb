"""Between samples as they are stored and the tensors that are diffused: `encode` and `decode`."""

from undiffuse.codecs.pixels import Pixels

CODECS = {
    "pixels": Pixels,
}

__all__ = ["CODECS", "Pixels"]
