"""What stands where in the figures: values, errors and bands on the axes that say so."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from undiffuse import plots
from undiffuse.plots.style import with_errors


def line(axis, label):
    """The points of the line that stands under `label` in the legend."""
    handles, labels = axis.get_legend_handles_labels()
    found = handles[labels.index(label)]
    found = found[0] if isinstance(found, tuple) else found  # an error bar's line
    return [tuple(map(float, point)) for point in zip(*found.get_data(), strict=True)]


def bars(axis):
    """The ends of the error bars of an axis, (x, low, high)."""
    collections = [part for part in axis.collections if hasattr(part, "get_segments")]
    return [(s[0][0], s[0][1], s[1][1]) for part in collections for s in part.get_segments()]


def test_bars_are_one_error_long_and_stay_above_0_on_a_logarithm():
    axis = Figure().subplots()
    rows = [{"at": 2.0, "value": 1.0, "value_error": 5.0}, {"at": 1.0, "value": 4.0, "value_error": 0.5}]
    with_errors(axis, rows, "at", "value", label="it")
    assert line(axis, "it") == [(1.0, 4.0), (2.0, 1.0)]  # from left to right
    assert bars(axis) == [(1.0, 3.5, 4.5), (2.0, pytest.approx(0.1), 6.0)]


def test_levels_are_over_those_of_the_first():
    def row(log_snr, loss, error):
        return {"log_snr": log_snr, "loss": loss, "standard_error": error}

    first = [row(-1.0, 2.0, 0.2), row(1.0, 4.0, math.nan)]
    figure = plots.levels({"training": first, "held out": [row(-1.0, 3.0, 0.4), row(1.0, 4.0, 1.0)]})
    loss, ratio = figure.axes
    assert line(loss, "held out") == [(-1.0, 3.0), (1.0, 4.0)]
    assert line(ratio, "training") == [(-1.0, 1.0), (1.0, 1.0)]
    assert line(ratio, "held out") == [(-1.0, 1.5), (1.0, 1.0)]
    assert (-1.0, pytest.approx(1.3), pytest.approx(1.7)) in bars(ratio)
    assert ratio.get_ylabel() == "loss over that of training"


def test_measurements_have_their_interval_and_the_band_of_real_images():
    panel = plots.Panel("recall", [("a", 0.5, (0.4, 0.7)), ("b", 0.6, None)], (0.8, 0.85, 0.95))
    axis = plots.measurements([panel, plots.Panel("kid", [("a", 0.1, None)])]).axes[0]
    points = [tuple(map(float, part.get_xdata())) for part in axis.lines]
    assert points == [(0.4, 0.7), (0.5,), (0.6,), (0.85, 0.85)]
    (band,) = axis.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (0.8, pytest.approx(0.95))
    assert axis.get_title() == "recall" and [t.get_text() for t in axis.get_yticklabels()] == ["a", "b"]


def test_fidelity_is_up_and_diversity_across():
    rows = [{"scale": 1.0, "precision": 0.7, "recall": 0.9}, {"scale": 3.0, "precision": 0.8, "recall": 0.5}]
    axis = plots.trade(rows, {"precision": 0.75, "recall": 0.85}).axes[0]
    assert axis.get_xlabel().startswith("recall") and axis.get_ylabel().startswith("precision")
    assert list(zip(*axis.lines[0].get_data(), strict=True)) == [(0.9, 0.7), (0.5, 0.8)]
    assert line(axis, "real training images") == [(0.85, 0.75)]


def test_each_metric_of_the_guidance_curve_has_an_axis():
    keys = ("accuracy", "precision", "recall", "frechet_distance")
    rows = [{"scale": s, **{key: s + i for i, key in enumerate(keys)}} for s in (1.0, 3.0)]
    axes = plots.guidance(rows, {"recall": 7.0}, "pixels").axes
    assert [axis.get_title() for axis in axes] == [key.replace("_", " ") for key in keys]
    for i, axis in enumerate(axes):
        assert list(axis.lines[0].get_ydata()) == [1.0 + i, 3.0 + i]
    assert list(axes[2].lines[-1].get_ydata()) == [7.0, 7.0]


def test_histograms_are_shares_and_likelihoods_share_their_bins():
    counts = [0] * 256
    counts[3], counts[9] = 30, 10
    axis = plots.histograms({"samples": counts, "data": [1] * 256}).axes[0]
    shares = dict(line(axis, "samples"))
    assert shares[3.0] == 0.75 and shares[9.0] == 0.25
    axis = plots.likelihoods({"a": np.linspace(1, 2, 40).tolist(), "b": [5.0]}).axes[0]
    assert axis.get_xlim()[0] <= 1 and axis.get_xlim()[1] >= 5


def test_a_code_has_its_rate_across_and_its_distortion_up():
    curve = {"log_snr": [-1.0, 2.0], "rate": [0.1, 3.0], "rate_error": [0.0, 0.0]}
    curve |= {"distortion": [50.0, 1.0], "distortion_error": [0.0, 0.0]}
    code, levels, right = plots.rate_distortion(curve).axes
    assert list(zip(*code.lines[0].get_data(), strict=True)) == [(0.1, 50.0), (3.0, 1.0)]
    assert list(levels.lines[0].get_ydata()) == [0.1, 3.0] and list(right.lines[0].get_ydata()) == [50.0, 1.0]


def test_spectra_leave_out_what_has_no_logarithm():
    axis = plots.spectra({"flat": ([1.0, 2.0], [0.5, 0.0]), "nothing": ([1.0], [0.0])}).axes[0]
    assert line(axis, "flat") == [(1.0, 0.5)]


def test_the_same_figure_is_the_same_file():
    def drawn():
        return plots.to_svg(plots.spectra({"a": ([1.0, 2.0], [0.5, 0.2])}))

    assert drawn() == drawn() and b"<svg" in drawn()
