"""The pictures of a training: losses over steps, and over noise levels."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from undiffuse.plots.style import plain_ticks, style


def losses(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and validation loss over steps, from the lines of metrics.jsonl."""
    figure = Figure(figsize=(6, 2.8))
    axis = figure.subplots()
    for key, how in (("loss", {"linewidth": 1.2}), ("validation_loss", {"marker": "o", "markersize": 3})):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axis.plot(*zip(*points, strict=True), label=key.replace("_", " "), **how)
    axis.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    plain_ticks(axis.yaxis)
    axis.legend()
    return figure


def levels(named: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """The loss at noise levels, by name: (log-SNR, loss) each; and each over that of the first, whose levels it has."""
    figure = Figure(figsize=(9, 2.8))
    loss, ratio = figure.subplots(1, 2)
    first = dict(next(iter(named.values())))
    for i, (name, points) in enumerate(named.items()):
        loss.plot(*zip(*sorted(points), strict=True), label=name, markersize=4, **style(i))
        over = [(at, value / first[at]) for at, value in sorted(points) if first.get(at)]
        if over:
            ratio.plot(*zip(*over, strict=True), label=name, markersize=4, **style(i))
    for axis in (loss, ratio):
        axis.set_xlabel("log-SNR (noise at the left, data at the right)")
    loss.set(ylabel="loss", yscale="log")
    ratio.set_ylabel(f"loss over that of {next(iter(named))}")
    loss.legend()
    figure.tight_layout()
    return figure
