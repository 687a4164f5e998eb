"""How all figures look: colours that the colour-blind and a printer tell apart, plain ticks, PNG and SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False})
matplotlib.rcParams.update({"axes.spines.right": False, "legend.frameon": False, "figure.dpi": 110})
matplotlib.rcParams["svg.hashsalt"] = "undiffuse"  # the same figure is the same bytes

Picture = Figure | np.ndarray  # what a report shows: a plot, or uint8 pixels (H, W, C)

# Okabe & Ito 2008, told apart by the colour-blind too; each also has a marker and a line of its own
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def style(i: int) -> dict[str, Any]:
    """The colour, marker and line of the i-th thing in a figure."""
    kinds = {"color": COLOURS, "marker": MARKERS, "linestyle": LINES}
    return {name: values[i % len(values)] for name, values in kinds.items()}


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """A figure as the bytes of an SVG, which print and screens show at any size; its letters are drawn as paths."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def apart(values: Sequence[float]) -> list[float]:
    """Of rising values those that are far enough from each other to be written on a logarithmic axis."""
    kept: list[float] = []
    for value in values:
        if not kept or value > 1.15 * kept[-1]:
            kept.append(value)
    return kept


def with_errors(axis: Axes, rows: Sequence[Mapping[str, Any]], across: str, up: str, **how: Any) -> None:
    """A line through rows, with bars of one standard error where they have one; without rows, a place in the legend."""
    points = sorted((row[across], row[up], row.get(f"{up}_error") or 0.0) for row in rows)
    x, y, error = zip(*points, strict=True) if points else ((), (), ())
    low = [min(bar, 0.9 * value) if value > 0 else bar for value, bar in zip(y, error, strict=True)]  # a logarithm's
    bars = [low, error] if any(error) else None
    axis.errorbar(x, y, yerr=bars, capsize=2, elinewidth=0.9, **how)
