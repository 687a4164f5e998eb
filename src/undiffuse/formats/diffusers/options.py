"""A configuration of diffusers, read option by option, so that none is ignored."""

from collections.abc import Mapping
from typing import Any

from undiffuse.errors import InputError


class Options:
    """The options of one of their classes: what the configuration gives, else the default.

    `take` reads an option that has an equal here. All others must stand at their defaults, and those that the class
    did not have at version 0.42 at None: `check` names every one that does not.
    """

    def __init__(self, kind: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.kind, self.defaults = kind, defaults
        self.given = {name: value for name, value in config.items() if not name.startswith("_")}
        self.left = set(self.given)
        self.refused: dict[str, str] = {}

    def take(self, name: str) -> Any:
        """The value of an option."""
        self.left.discard(name)
        return self.given.get(name, self.defaults[name])

    def refuse(self, name: str, why: str = "") -> None:
        """Note that the value of an option has no equal here."""
        self.left.discard(name)
        value = self.given.get(name, self.defaults.get(name))
        self.refused.setdefault(name, f"{name}={value!r}" + (f" ({why})" if why else ""))

    def require(self, holds: bool, name: str, why: str = "") -> None:
        """Refuse an option unless `holds`."""
        if not holds:
            self.refuse(name, why)

    def check(self) -> None:
        """Raises: InputError that names every option without an equal here."""
        for name in sorted(self.left):
            self.require(self.given[name] == self.defaults.get(name), name)
        if self.refused:
            raise InputError(f"{self.kind} options that have no equal here: {', '.join(self.refused.values())}")
