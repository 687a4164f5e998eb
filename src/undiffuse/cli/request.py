"""What `sample` is asked for, written into the pictures it makes, and read back from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from undiffuse.cli.guidance import Options
from undiffuse.config import Section, validated
from undiffuse.errors import InputError
from undiffuse.modalities import image

KEY = "undiffuse"  # of the text in a picture
OF_THE_GRID = ("sampler", "steps", "grid")  # what another of changes the times that were recorded


class Request(Section):
    """All that decides the pictures of a run, as the options of `sample` give it. None: the model's default."""

    n: int = 64
    seed: int = 0
    label: str | None = None
    condition: tuple[str, ...] = ()
    row: tuple[int, int] | None = Field(None, description="i, m: the conditions are the i-th of those for m samples")
    guidance: float | None = None
    negative: list[str] | None = None
    weak: str | None = None
    interval: str | None = None
    rescale: float | None = None
    threshold: str | None = None
    sequential: bool = False
    classifier: float | None = None
    sampler: str | None = None
    steps: int | None = None
    grid: str | None = None
    times: list[float] | None = Field(None, description="of a fitted grid, which may be fitted again")
    size: str | None = None
    step: int | str | None = None

    @property
    def options(self) -> Options:
        """What was asked for beside the scale of guidance."""
        return Options(**{name: getattr(self, name) for name in Options.__dataclass_fields__})

    def changed(self, given: Mapping[str, Any]) -> "Request":
        """This request with the options that are given beside it. Conditions change by name.

        A new number of steps, grid or sampler takes its own times; a new label or condition is read for all samples,
        and not for one row of others.
        """
        values = self.model_dump() | {name: value for name, value in given.items() if value is not None}
        texts = list(given.get("condition") or ())
        new = {text.partition("=")[0] for text in texts} | ({"label"} if given.get("label") is not None else set())
        values["condition"] = [text for text in self.condition if text.partition("=")[0] not in new] + texts
        if "label" in new:  # by either option
            values["label"] = given.get("label")
        if any(given.get(name) is not None for name in OF_THE_GRID):
            values["times"] = None
        if given.get("sampler") is not None and given.get("grid") is None:
            values["grid"] = None  # that of the sampler's name, or the default
        if new:
            values["row"] = None
        return validated(values, Request)


def recorded(path: Path) -> tuple[Request, dict[str, Any]]:
    """The request that made a picture, or the pictures of an .npz, and all that is recorded of it.

    Of one picture of a folder, the request for it alone: its own seed, and its own row of the conditions.

    Raises: InputError for a file without a record, or with one that `sample` did not write.
    """
    facts = read_facts(path)
    made = {**facts, "sampler": facts.get("sampler_name")}
    if not {"n", "seed", "sampler_name"} <= facts.keys():
        raise InputError(f"{path} was not made by `undiffuse sample` of this version, so it cannot be made again")
    request = validated({name: made[name] for name in Request.model_fields if name in made}, Request)
    index = facts.get("index")
    if index is None:
        return request, facts
    if not isinstance(index, int) or not 0 <= index < request.n:
        raise InputError(f"{path} says that it is picture {index!r} of {request.n}")
    row = request.row or (index, request.n)
    return request.model_copy(update={"n": 1, "seed": request.seed + index, "row": row}), facts


def read_facts(path: Path) -> dict[str, Any]:
    """What undiffuse wrote into a picture or an .npz, and its number among others. Raises: InputError for nothing."""
    text = image.read_metadata(path)
    try:
        facts = json.loads(text[KEY])
        if not isinstance(facts, dict):
            raise ValueError("no record")
        return facts | {name: int(text[name]) for name in ("index",) if name in text}
    except KeyError:
        raise InputError(f"{path} carries no metadata of undiffuse") from None
    except ValueError as error:
        raise InputError(f"the metadata of {path} cannot be read: {error}") from error
