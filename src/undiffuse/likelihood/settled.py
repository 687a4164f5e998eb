"""A denoiser as it is measured: without dropout, in the precision of its weights."""

import contextlib
from collections.abc import Iterator

from undiffuse.denoiser import BaseDenoiser, Denoiser


@contextlib.contextmanager
def settled(denoiser: BaseDenoiser) -> Iterator[None]:
    """The denoiser without dropout, and with networks in the precision of their weights, as long as the block runs."""
    modules = list(denoiser.modules())
    training = [module for module in modules if module.training]
    reduced = [(module, module.precision) for module in modules if isinstance(module, Denoiser) and module.precision]
    try:
        for module in training:
            module.training = False
        for module, _ in reduced:
            module.precision = None
        yield
    finally:
        for module in training:
            module.training = True
        for module, precision in reduced:
            module.precision = precision
