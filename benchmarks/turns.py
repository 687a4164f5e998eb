"""What the timed comparisons share: contenders that take turns, a table, a file of results that names the hardware."""

import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import undiffuse
from undiffuse.acceleration import default_device, describe

RESULTS = Path(__file__).parent / "results"


def take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round that is not timed.

    Turn by turn, so that whatever else the machine does meets all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for timed in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if timed:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def rate(seconds: Sequence[float], count: int) -> float:
    """`count` things a second, by the median."""
    return count / statistics.median(seconds)


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """The hardware and the versions that a result is of."""
    versions = {}
    for name in ("torch", *packages):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = getattr(sys.modules.get(name), "__version__", "not installed")
    return {
        "device": describe(default_device()),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "undiffuse": undiffuse.__version__,
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as a table of Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def save(name: str, found: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def stub(*names: str) -> None:
    """Packages that a peer imports and does not use here, and that have no CPU build, as empty ones."""
    for name in names:
        try:
            importlib.metadata.version(name.partition(".")[0].replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            sys.modules.setdefault(name, mock.MagicMock())


def cosine(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> float:
    """The cosine between two lists of tensors."""
    x, y = (torch.cat([t.detach().double().flatten() for t in part]) for part in (a, b))
    return float(torch.dot(x, y) / (x.norm() * y.norm()))


def difference(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> float:
    """|a - b| / |b| of two lists of tensors."""
    x, y = (torch.cat([t.detach().double().flatten() for t in part]) for part in (a, b))
    return float((x - y).norm() / y.norm())
