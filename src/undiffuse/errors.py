"""The one exception for bad input. The command line prints it as a single line and exits with code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave is not usable. The message names the value given and the values allowed."""


def unknown(kind: str, given: object, allowed: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not known, with the nearest known name first.

    >>> str(unknown("sampler", "dmp++", ["ddim", "dpm++"]))
    "unknown sampler 'dmp++': did you mean 'dpm++'? Known: ddim, dpm++"
    """
    names = list(allowed)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {given!r}:{hint} Known: {', '.join(names) or 'none'}")
