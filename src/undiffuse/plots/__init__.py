"""The pictures that explain and compare. Each function gives a matplotlib figure; `to_png` and `to_svg` write it."""

from undiffuse.plots.process import forward_process, grids, schedules
from undiffuse.plots.quality import comparison, guidance, quality
from undiffuse.plots.style import to_png, to_svg
from undiffuse.plots.training import losses

__all__ = ["comparison", "forward_process", "grids", "guidance", "losses", "quality", "schedules", "to_png", "to_svg"]
