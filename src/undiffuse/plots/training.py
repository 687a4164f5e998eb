"""The pictures of a training: losses over steps, and over noise levels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from undiffuse.plots.style import plain_ticks, style, with_errors


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


def levels(named: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """The loss at noise levels, by name, with its standard errors; and each over that of the first, at its levels.

    Rows are those of `training.loss_by_level`: "log_snr", "loss", "standard_error".
    """
    figure = Figure(figsize=(9, 2.8))
    loss, ratio = figure.subplots(1, 2)
    name_of_first, rows_of_first = next(iter(named.items()))
    first = {row["log_snr"]: row["loss"] for row in rows_of_first}
    for i, (name, rows) in enumerate(named.items()):
        absolute, relative = [], []
        for row in rows:
            error = 0.0 if math.isnan(row["standard_error"]) else row["standard_error"]
            absolute.append({"log_snr": row["log_snr"], "loss": row["loss"], "loss_error": error})
            base = first.get(row["log_snr"])
            if base:
                relative.append({"log_snr": row["log_snr"], "ratio": row["loss"] / base, "ratio_error": error / base})
        with_errors(loss, absolute, "log_snr", "loss", label=name, markersize=4, **style(i))
        with_errors(ratio, relative, "log_snr", "ratio", label=name, markersize=4, **style(i))
    for axis in (loss, ratio):
        axis.set_xlabel("log-SNR (noise at the left, data at the right)")
    loss.set(ylabel="loss", yscale="log")
    ratio.set_ylabel(f"loss over that of {name_of_first}")
    loss.legend()
    figure.tight_layout()
    return figure
