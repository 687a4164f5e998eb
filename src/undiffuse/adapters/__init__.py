"""Network -> network: what is put around a network, whose own file stays untouched."""

from undiffuse.adapters.compiled import Compiled, check_compiler

__all__ = ["Compiled", "check_compiler"]
