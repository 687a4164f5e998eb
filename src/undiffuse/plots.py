"""The pictures that explain: schedules, the forward process, losses, time grids, quality against evaluations."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from undiffuse.modalities import image
from undiffuse.noise import NoiseSource
from undiffuse.schedule import Schedule, along_batch

matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False})
matplotlib.rcParams.update({"axes.spines.right": False, "legend.frameon": False, "figure.dpi": 110})


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def _plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def schedules(named: Mapping[str, Schedule]) -> Figure:
    """beta (as g^2, which it is where variance is preserved), alpha, sigma and log-SNR over time."""
    figure = Figure(figsize=(12, 2.7))
    axes = figure.subplots(1, 4)
    t = torch.linspace(0, 1, 403, dtype=torch.float64)[1:-1]
    panels: tuple[tuple[str, Callable[[Schedule], Tensor]], ...] = (
        ("beta = g²", lambda s: s.diffusion_squared(t)),
        ("alpha", lambda s: s.alpha(t)),
        ("sigma", lambda s: s.sigma(t)),
        ("log-SNR", lambda s: s.log_snr(t)),
    )
    for axis, (title, values) in zip(axes, panels, strict=True):
        for name, schedule in named.items():
            axis.plot(t.numpy(), values(schedule).detach().numpy(), label=name, linewidth=1.4)
        axis.set(title=title, xlabel="time t (0 = data, 1 = noise)")
    axes[0].set_yscale("log")
    if any(float(s.sigma(1.0)) > 2 for s in named.values()):
        axes[2].set_yscale("log")
    if len(named) > 1:
        axes[3].legend(fontsize=7)
    return figure


def forward_process(
    schedule: Schedule, x0: Tensor, decode: Callable[[Tensor], Tensor], times: Sequence[float], seed: int = 0
) -> np.ndarray:
    """One sample x0 (C, H, W) with the noise of each time, side by side: uint8 (H, W', C). The same noise throughout.

    Divided by sqrt(alpha^2 + sigma^2), so that every schedule stays within the range that can be shown.
    """
    t = torch.tensor(times, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    scale = torch.hypot(alpha, sigma)
    many = x0[None].expand(len(t), *x0.shape)
    noise = NoiseSource([seed], x0.shape).normal("noise").expand_as(many)
    shown = along_batch(alpha / scale, many) * many + along_batch(sigma / scale, many) * noise
    return image.grid(image.to_array(decode(shown)), columns=len(t), padding=2)


def losses(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and validation loss over steps, from the lines of metrics.jsonl."""
    figure = Figure(figsize=(6, 2.8))
    axis = figure.subplots()
    for key, style in (("loss", {"linewidth": 1.2}), ("validation_loss", {"marker": "o", "markersize": 3})):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axis.plot(*zip(*points, strict=True), label=key.replace("_", " "), **style)
    axis.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    _plain_ticks(axis.yaxis)
    axis.legend()
    return figure


def grids(schedule: Schedule, named: Mapping[str, Tensor]) -> Figure:
    """Where each time grid (steps + 1,) calls the network: its levels over the log-SNR."""
    names = list(named)
    figure = Figure(figsize=(8, 0.6 + 0.4 * len(names)))
    axis = figure.subplots()
    for row, points in enumerate(named.values()):
        levels = schedule.log_snr(points[:-1]).detach().clamp(min=-20)
        axis.plot(levels.numpy(), np.full(len(levels), row), "o", markersize=4)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="log-SNR (noise at the left, data at the right)", ylim=(-0.7, len(names) - 0.3))
    axis.invert_yaxis()
    return figure


def quality(rows: Sequence[Mapping[str, Any]], baseline: float, measured: str) -> Figure:
    """Frechet distance against evaluations and against seconds, a line per sampler, with real data as the floor."""
    figure = Figure(figsize=(9, 3))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in zip(axes, ("evaluations", "seconds"), ("network calls", "seconds"), strict=True):
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            points = [(row[key], row["frechet_distance"]) for row in rows if row["sampler"] == sampler]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=sampler)
        axis.axhline(baseline, color="gray", linestyle="--", linewidth=1, label="real training images")
        axis.set(xlabel=label, xscale="log", yscale="log")
        _plain_ticks(axis.xaxis)
        _plain_ticks(axis.yaxis)
    axes[0].set_ylabel(f"Frechet distance over\n{measured}", fontsize=8)
    axes[0].legend(fontsize=7)
    return figure


# Okabe & Ito 2008, told apart by the colour-blind too; each also has a marker and a line of its own
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def guidance(rows: Sequence[Mapping[str, Any]], real: Mapping[str, float], measured: str) -> Figure:
    """What guidance gives and takes: shares (accuracy, precision, recall) and Frechet distance against its scale.

    rows: as `undiffuse.evaluation` has them; real: the same of real training images; measured: the features.
    """
    figure = Figure(figsize=(9, 3))
    shares, distance = figure.subplots(1, 2)
    scales = [row["scale"] for row in rows]
    for i, key in enumerate(("accuracy", "precision", "recall", "frechet_distance")):
        axis = distance if key == "frechet_distance" else shares
        style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[i % 3]}
        axis.plot(scales, [row[key] for row in rows], label=key, markersize=4, **style)
        if key in real:
            axis.axhline(real[key], color=COLOURS[i], linewidth=0.9, linestyle=":")
    for axis in (shares, distance):
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axis.set_xlabel("guidance scale (1 = conditional)")
        axis.set_title("dotted: real training images", fontsize=9)
    shares.set(ylabel="share of samples, or of held-out images", ylim=(0, 1.02))
    shares.legend(fontsize=7)
    distance.set_ylim(bottom=0)
    distance.set_ylabel(f"Frechet distance over\n{measured}", fontsize=8)
    figure.tight_layout()
    return figure


def _apart(values: Sequence[float]) -> list[float]:
    """Of rising values those that are far enough from each other to be written on a logarithmic axis."""
    kept: list[float] = []
    for value in values:
        if not kept or value > 1.15 * kept[-1]:
            kept.append(value)
    return kept


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
            points = [(row[key], row[value]) for row in rows if row["name"] == name and row[value] is not None]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            # a line without points still has its place in the legend
            axis.plot(*zip(*sorted(points), strict=True) if points else ([], []), label=name, markersize=5,
                      linestyle=LINES[i % len(LINES)], linewidth=1.4, **style)  # fmt: skip
        if value == "frechet_distance":
            axis.axhline(baseline, color="gray", linewidth=1, label="real training images")
        axis.set(xlabel="network calls" if key == "evaluations" else "seconds", xscale="log", yscale="log")
        _plain_ticks(axis.xaxis)
        _plain_ticks(axis.yaxis)
        if key == "evaluations":
            axis.set_xticks(_apart(sorted({row[key] for row in rows})))
    axes[0].set_title("distance to the model's own fine solution", fontsize=9)
    axes[0].set_ylabel("root-mean-square")
    axes[1].set_title(f"Frechet distance over {measured}", fontsize=9)
    axes[2].set_title("the same against time", fontsize=9)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(4, len(labels)), fontsize=8)
    figure.tight_layout()
    return figure
