"""Between samples as they are stored and the tensors that are diffused: `encode` and `decode`."""

from undiffuse.codecs.identity import Identity
from undiffuse.codecs.pixels import Pixels

CODECS = {
    "pixels": Pixels,
    "identity": Identity,
}

__all__ = ["CODECS", "Identity", "Pixels"]
