"""The pictures of the process: schedules, noise added step by step, and where time grids call the network."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from undiffuse.modalities import image
from undiffuse.noise import NoiseSource
from undiffuse.schedule import Schedule, along_batch


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
