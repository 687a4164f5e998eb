"""The pictures of what samples are worth: against evaluations, seconds and guidance."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from undiffuse.plots.style import apart, plain_ticks, style, with_errors


def quality(rows: Sequence[Mapping[str, Any]], baseline: float, measured: str) -> Figure:
    """Frechet distance against evaluations and against seconds, a line per sampler, with real data as the floor."""
    figure = Figure(figsize=(9, 3))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in zip(axes, ("evaluations", "seconds"), ("network calls", "seconds"), strict=True):
        for i, sampler in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
            of_it = [row for row in rows if row["sampler"] == sampler]
            with_errors(axis, of_it, key, "frechet_distance", label=sampler, markersize=4, **style(i))
        axis.axhline(baseline, color="gray", linestyle="--", linewidth=1, label="real training images")
        axis.set(xlabel=label, xscale="log", yscale="log")
        plain_ticks(axis.xaxis)
        plain_ticks(axis.yaxis)
    axes[0].set_ylabel(f"Frechet distance over\n{measured}", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.9), ncols=len(labels), fontsize=8)
    return figure


def guidance(rows: Sequence[Mapping[str, Any]], real: Mapping[str, float], measured: str) -> Figure:
    """What guidance gives and takes: accuracy, precision, recall and Frechet distance against its scale, an axis each.

    rows: as `undiffuse.evaluation` has them; real: the same of real training images; measured: the features.
    """
    figure = Figure(figsize=(12, 2.8))
    keys = ("accuracy", "precision", "recall", "frechet_distance")
    scales = [row["scale"] for row in rows]
    for i, (axis, key) in enumerate(zip(figure.subplots(1, 4), keys, strict=True)):
        with_errors(axis, rows, "scale", key, markersize=4, **style(i))
        if key in real:
            axis.axhline(real[key], color="gray", linewidth=1, linestyle="--")
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axis.set_xlabel("guidance scale (1 = conditional)")
        axis.set_title(key.replace("_", " "), fontsize=9)
    figure.supxlabel(f"over {measured}; bars: one standard error; dashed: real training images", fontsize=8)
    figure.tight_layout()
    return figure


def comparison(rows: Sequence[Mapping[str, Any]], baseline: float, measured: str) -> Figure:
    """Error and Frechet distance against evaluations, and Frechet distance against seconds; a line per sampler.

    rows: as `undiffuse.comparison.Comparison` has them; an error of None (samplers that draw noise) is not drawn.
    baseline: the distance of real images; measured: the features that distances are taken over.
    """
    figure = Figure(figsize=(12, 4.2))
    axes = figure.subplots(1, 3)
    panels = (("evaluations", "error"), ("evaluations", "frechet_distance"), ("seconds", "frechet_distance"))
    for axis, (key, value) in zip(axes, panels, strict=True):
        for i, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            of_it = [row for row in rows if row["name"] == name and row[value] is not None]
            with_errors(axis, of_it, key, value, label=name, markersize=5, linewidth=1.4, **style(i))
        if value == "frechet_distance":
            axis.axhline(baseline, color="gray", linewidth=1, label="real training images")
        axis.set(xlabel="network calls" if key == "evaluations" else "seconds", xscale="log", yscale="log")
        plain_ticks(axis.xaxis)
        plain_ticks(axis.yaxis)
        if key == "evaluations":
            axis.set_xticks(apart(sorted({row[key] for row in rows})))
    axes[0].set_title("distance to the model's own fine solution", fontsize=9)
    axes[0].set_ylabel("root-mean-square")
    axes[1].set_title(f"Frechet distance over {measured}", fontsize=9)
    axes[2].set_title("the same against time", fontsize=9)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(4, len(labels)), fontsize=8)
    figure.tight_layout()
    return figure


class Panel(NamedTuple):
    """One axis of `measurements`: values of one metric under the same settings.

    title: the metric; values: (name, value, 95 % interval or None) each; real: the same metric of real images, (low,
    mean, high) over their draws, where it is known.
    """

    title: str
    values: Sequence[tuple[str, float, tuple[float, float] | None]]
    real: tuple[float, float, float] | None = None


def measurements(panels: Sequence[Panel], columns: int = 4) -> Figure:
    """Metrics with their error bars, each on an axis of its own, with what real images have as a grey band."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(panel.values) for panel in panels)
    figure = Figure(figsize=(3 * columns, (1.0 + 0.3 * most) * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        for i, (name, value, interval) in enumerate(panel.values):
            colour, marker = style(i)["color"], style(i)["marker"]
            if interval is not None:  # of percentiles it need not lie around the value
                axis.plot(interval, [i, i], color=colour, linewidth=1.4, marker="|", markersize=8)
            axis.plot([value], [i], color=colour, marker=marker, markersize=5, linestyle="", label=name)
        if panel.real is not None:
            low, mean, high = panel.real
            axis.axvspan(low, high, color="#BBBBBB", alpha=0.45, linewidth=0)
            axis.axvline(mean, color="#777777", linewidth=1, linestyle="--")
        axis.set_yticks(range(len(panel.values)), [name for name, *_ in panel.values], fontsize=8)
        axis.set_ylim(len(panel.values) - 0.4, -0.6)
        axis.set_title("\n".join(textwrap.wrap(panel.title, 34)), fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure


def trade(rows: Sequence[Mapping[str, Any]], real: Mapping[str, float]) -> Figure:
    """Fidelity against diversity as the guidance scale grows: precision against recall, a point for each scale."""
    figure = Figure(figsize=(4.2, 3.4))
    axis = figure.subplots()
    across, up = [row["recall"] for row in rows], [row["precision"] for row in rows]
    axis.plot(across, up, markersize=5, **style(0))
    for row in rows:
        axis.annotate(f"{row['scale']:g}", (row["recall"], row["precision"]), (4, 4), textcoords="offset points")
    if "recall" in real:
        axis.plot([real["recall"]], [real["precision"]], **{**style(3), "linestyle": ""}, label="real training images")
        axis.legend(fontsize=8)
    axis.set(xlabel="recall (diversity)", ylabel="precision (fidelity)")
    axis.set_title("each point a guidance scale", fontsize=9)
    return figure
