"""Fitted time grids in a run folder: grids/NAME.json, one grid for each number of steps that was fitted."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.files import write_text
from undiffuse.samplers.grid import GRIDS

FOLDER = "grids"


@dataclass(frozen=True)
class StoredGrid:
    """A fitted grid and what was measured of it.

    times: falling from t_max to 0; sampler: which it was fitted to, by name; guidance: the scale; n: trajectories that
    were fitted, and others that were measured; error: root-mean-square distance to the model's own fine solution, and
    before: the same on the best named grid, `candidate`.
    """

    times: tuple[float, ...]
    sampler: str
    guidance: float
    n: int
    error: float
    before: float
    candidate: str

    @property
    def points(self) -> Float64[Tensor, " points"]:
        return torch.tensor(self.times, dtype=torch.float64)


ByStep = Mapping[int, StoredGrid]


def check_name(name: str) -> None:
    """Raises: InputError for a name that is a grid's already, or that makes no file name."""
    if name in GRIDS:
        raise InputError(
            f"{name!r} is one of the time grids that are known: choose another name than {', '.join(GRIDS)}"
        )
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"a grid's name has letters, digits, hyphens, dots and underscores only, not {name!r}")


def read(path: Path) -> dict[int, StoredGrid]:
    """The grids of one file, by their number of steps. Raises: InputError for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["steps"]
        grids = {int(steps): StoredGrid(**{**grid, "times": tuple(grid["times"])}) for steps, grid in found.items()}
        for steps, grid in grids.items():
            _check(grid, steps)
        return grids
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path} is not a fitted grid ({reason}): delete it, or fit it again") from error


def _check(grid: StoredGrid, steps: int) -> None:
    """Raises: ValueError for times that are not those of so many steps."""
    times = grid.times
    falls = all(isinstance(t, float | int) and math.isfinite(t) for t in times) and bool((grid.points.diff() < 0).all())
    if len(times) != steps + 1 or not falls or times[0] > 1 or times[-1] != 0:
        raise ValueError(f"its {steps} steps are not {steps + 1} times that fall to 0")


def unmeasured(times: Sequence[float], steps: int) -> StoredGrid:
    """A grid of which the times alone are known, from a picture say. Raises: InputError for times of another number."""
    grid = StoredGrid(tuple(times), sampler="", guidance=math.nan, n=0, error=math.nan, before=math.nan, candidate="")
    try:
        _check(grid, steps)
    except ValueError as error:
        raise InputError(f"the recorded times are no time grid: {error}") from error
    return grid


class Folder(Mapping[str, ByStep]):
    """The fitted grids of a run folder by name; each file is read when it is asked for, so a corrupt one stops no more.

    Raises: InputError for a corrupt file.
    """

    def __init__(self, run: Path) -> None:
        self.paths = {path.stem: path for path in sorted((run / FOLDER).glob("[!.]*.json"))}

    def __getitem__(self, name: str) -> ByStep:
        return read(self.paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def write(run: Path, name: str, grids: ByStep) -> Path:
    """Write the grids of one name, whole or not at all; returns their file. Raises: InputError."""
    check_name(name)
    path = run / FOLDER / f"{name}.json"
    plain = {str(steps): {**vars(grid), "times": list(grid.times)} for steps, grid in sorted(grids.items())}
    write_text(path, json.dumps({"steps": plain}, indent=2) + "\n")
    return path


def points(name: str, grids: ByStep, steps: int) -> Float64[Tensor, " points"]:
    """The grid (steps + 1,) of so many steps. Raises: InputError that names the numbers of steps that were fitted."""
    if steps not in grids:
        raise InputError(
            f"the grid {name!r} was not fitted for {steps} steps, but for {', '.join(map(str, sorted(grids)))}: "
            f"`undiffuse grid RUN --steps {steps} --name {name}` fits it"
        )
    return grids[steps].points
