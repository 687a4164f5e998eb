"""Names -> classes: a registry is a dict literal of classes, and this makes an instance from one."""

import inspect
from collections.abc import Mapping
from typing import TypeVar

from undiffuse.errors import InputError, unknown

T = TypeVar("T")
_PLAIN: dict[object, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def build(kind: str, registry: Mapping[str, type[T]], name: str, arguments: Mapping[str, object]) -> T:
    """registry[name](**arguments). Raises: InputError for unknown names, with the nearest known, and missing ones."""
    if name not in registry:
        raise unknown(kind, name, registry)
    cls = registry[name]
    parameters = inspect.signature(cls).parameters
    for key in arguments:
        if key not in parameters:
            raise unknown(f"argument of {kind} {name}", key, parameters)
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if missing:
        raise InputError(f"{kind} {name} needs {', '.join(missing)}")
    for key, value in arguments.items():
        annotation = parameters[key].annotation
        if annotation in _PLAIN and (
            not isinstance(value, _PLAIN[annotation]) or (isinstance(value, bool) and annotation is not bool)
        ):
            allowed = "true or false" if annotation is bool else f"of type {annotation.__name__}"
            raise InputError(f"{key} of {kind} {name} must be {allowed}, not {value!r}")
    try:
        return cls(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind} {name}: {error}") from error
