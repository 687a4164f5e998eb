"""A schedule that is trained with the denoiser."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from undiffuse.schedule.base import FINEST_NOISE_TO_SIGNAL, Host, Schedule, Time, check, host

BISECTIONS = 55  # of [0, 1]: to a float64's last bit


class Learned(nn.Module, Schedule):
    """log_snr falls from `log_snr_max` at t = `first` to `log_snr_min` at 1 along a monotone network.

        log_snr = log_snr_max - (log_snr_max - log_snr_min) (g(u) - g(0)) / (g(1) - g(0))
        g(u) = a u + sum_k b_k sigmoid(c_k (u - d_k)),   a, b_k, c_k > 0,      u = (t - first) / (1 - first)

    Variance preserving (Kingma et al. 2021, VDM, appendices H and I). The ends are given, because the variational bound
    depends on them and, in continuous time, on nothing in between: what is learned is the schedule under which the
    estimate of the bound has the least variance. It starts out near a straight line. Below `first`, sigma / alpha is
    linear in t, as in a table.

    features: how many sigmoids. Parameters are float64 and stay on the host, wherever the denoiser is moved.
    """

    def __init__(
        self,
        log_snr_max: float = -2 * math.log(FINEST_NOISE_TO_SIGNAL),
        log_snr_min: float = -10.0,
        first: float = 1e-3,
        features: int = 32,
    ) -> None:
        super().__init__()
        check(log_snr_min < log_snr_max < math.inf, f"log_snr_max must be above log_snr_min={log_snr_min}", log_snr_max)
        check(math.isfinite(log_snr_min), "log_snr_min must be finite", log_snr_min)
        check(0 < first < 1, "first must be in (0, 1)", first)
        check(features >= 1, "features must be 1 or more", features)
        self.log_snr_max, self.log_snr_min, self.first = log_snr_max, log_snr_min, first
        grid = (torch.arange(features, dtype=torch.float64) + 0.5) / features
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.heights = nn.Parameter(torch.zeros_like(grid))
        self.steepness = nn.Parameter(torch.full_like(grid, 2.0 * features))
        self.centres = nn.Parameter(grid)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Learned":
        return self  # levels live in float64 on the host

    def extra_repr(self) -> str:
        return f"log_snr_max={self.log_snr_max:.4g}, log_snr_min={self.log_snr_min:.4g}, first={self.first:.4g}"

    @property
    def finest_time(self) -> float:
        return self.first

    def _parts(self, u: Host) -> tuple[Host, Host, Host, Host]:
        """Slope, heights and steepness, all positive, and the sigmoids at u (..., features)."""
        steepness = softplus(self.steepness)
        sigmoids = (steepness * (u[..., None] - self.centres)).sigmoid()
        return softplus(self.slope), softplus(self.heights) / len(self.heights), steepness, sigmoids

    def _rise(self, u: Host) -> Host:
        """(g(u) - g(0)) / (g(1) - g(0))."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        slope, heights, _, sigmoids = self._parts(torch.cat([ends, u.reshape(-1)]))
        g = slope * torch.cat([ends, u.reshape(-1)]) + sigmoids @ heights
        return ((g[2:] - g[0]) / (g[1] - g[0])).reshape(u.shape)

    def log_snr(self, t: Time) -> Host:
        t = host(t)
        rise = self._rise(((t - self.first) / (1 - self.first)).clamp(min=0))
        below = self.log_snr_max - 2 * torch.log(torch.where(t < self.first, t / self.first, 1.0))
        return torch.where(t < self.first, below, self.log_snr_max - (self.log_snr_max - self.log_snr_min) * rise)

    def log_snr_dot(self, t: Time) -> Host:
        """d log_snr / dt, through which the parameters can be differentiated."""
        t = host(t)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        slope, heights, steepness, sigmoids = self._parts(((t - self.first) / (1 - self.first)).clamp(min=0))
        steep = slope + (steepness * sigmoids * (1 - sigmoids)) @ heights
        outer = slope * ends + self._parts(ends)[3] @ heights
        scale = (self.log_snr_max - self.log_snr_min) / ((1 - self.first) * (outer[1] - outer[0]))
        return torch.where(t < self.first, -2 / t, -scale * steep)

    @torch.no_grad()
    def _time(self, log_snr: Host) -> Host:
        wanted = (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            under = self._rise(middle) < wanted
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        inside = self.first + (1 - self.first) * high
        return torch.where(wanted < 0, self.first * torch.exp((self.log_snr_max - log_snr) / 2), inside)
