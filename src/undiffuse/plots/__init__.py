"""The pictures that explain and compare. Each function gives a matplotlib figure; `to_png` and `to_svg` write it."""

from undiffuse.plots.process import forward_process, grids, schedules
from undiffuse.plots.quality import Panel, comparison, guidance, measurements, quality, trade
from undiffuse.plots.samples import histograms, likelihoods, rate_distortion, spectra
from undiffuse.plots.style import Picture, to_png, to_svg
from undiffuse.plots.training import levels, losses

__all__ = [
    "Panel", "Picture", "comparison", "forward_process", "grids", "guidance", "histograms", "levels", "likelihoods",
    "losses", "measurements", "quality", "rate_distortion", "schedules", "spectra", "to_png", "to_svg", "trade",
]  # fmt: skip
