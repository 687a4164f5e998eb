"""The pictures of what samples are made of: power over spatial frequency, grey levels, likelihood."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from undiffuse.plots.style import COLOURS, plain_ticks, style


def spectra(named: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Radial power of samples and of data, by name: (frequencies, power), as `metrics.radial_power` gives them."""
    figure = Figure(figsize=(5, 3))
    axis = figure.subplots()
    for i, (name, (frequencies, power)) in enumerate(named.items()):
        shown = [(f, p) for f, p in zip(frequencies, power, strict=True) if p > 0]
        if shown:
            axis.plot(*zip(*shown, strict=True), label=name, markersize=4, **style(i))
    axis.set(xlabel="cycles across the shorter side", ylabel="mean power", xscale="log", yscale="log")
    plain_ticks(axis.xaxis)
    axis.legend()
    return figure


def histograms(named: Mapping[str, Sequence[int]]) -> Figure:
    """How often each of the 256 values occurs, by name, as shares of all values."""
    figure = Figure(figsize=(5, 3))
    axis = figure.subplots()
    for i, (name, counts) in enumerate(named.items()):
        shares = np.asarray(counts, float) / max(1, sum(counts))
        axis.step(range(len(shares)), shares, where="mid", label=name, linewidth=1.2,
                  color=COLOURS[i % len(COLOURS)], linestyle=style(i)["linestyle"])  # fmt: skip
    axis.set(xlabel="value, 0 to 255", ylabel="share of all values", yscale="log")
    axis.legend()
    return figure


def likelihoods(named: Mapping[str, Sequence[float]]) -> Figure:
    """Bits per dimension of single samples, by what they are of: a histogram each, on the same bins."""
    figure = Figure(figsize=(5, 3))
    axis = figure.subplots()
    everything = np.concatenate([np.asarray(values, float) for values in named.values()])
    bins = np.histogram_bin_edges(everything, bins=min(40, max(8, len(everything) // 8))).tolist()
    for i, (name, values) in enumerate(named.items()):
        axis.hist(values, bins, histtype="step", label=name, linewidth=1.4, density=True,
                  color=COLOURS[i % len(COLOURS)], linestyle=style(i)["linestyle"])  # fmt: skip
    axis.set(xlabel="bits per dimension (fewer: more likely)", ylabel="density of samples")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(named))
    return figure


def rate_distortion(curve: Mapping[str, Sequence[float]]) -> Figure:
    """A model as a progressive code: distortion against rate, and both against the noise level.

    curve: "log_snr", "rate", "rate_error", "distortion" and "distortion_error", from noise to data, as
    `likelihood.rate_distortion` has them.
    """
    figure = Figure(figsize=(9, 3))
    code, levels = figure.subplots(1, 2)
    code.errorbar(curve["rate"], curve["distortion"], xerr=curve["rate_error"], yerr=curve["distortion_error"],
                  markersize=4, linewidth=1.2, **style(0))  # fmt: skip
    code.set(xlabel="rate, bits per dimension", ylabel="distortion, values of 0 to 255")
    levels.plot(curve["log_snr"], curve["rate"], markersize=4, label="rate", **style(0))
    levels.set(xlabel="log-SNR (noise at the left, data at the right)", ylabel="rate, bits per dimension")
    right = levels.twinx()
    right.plot(curve["log_snr"], curve["distortion"], markersize=4, label="distortion", **style(1))
    right.set_ylabel("distortion, values of 0 to 255")
    right.grid(False)
    handles = [*levels.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    levels.legend(handles, ["rate", "distortion"], loc="center left")
    figure.tight_layout()
    return figure
