"""Schedules in continuous time."""

import math
from dataclasses import dataclass

import torch

from undiffuse.schedule.base import Host, Schedule, Time, check, host

# -- variance preserving ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(theta) / cos(theta_0) with theta linear in t from theta_0 = offset / (1 + offset) pi/2.

    Nichol & Dhariwal (2021) in continuous time. Theirs ends at alpha(1) = 6e-17, where a predicted noise is amplified
    1e16 times; here theta ends where log_snr = `log_snr_min`.
    """

    offset: float = 0.008
    log_snr_min: float = -15.0

    def _check_arguments(self) -> None:
        check(0 < self.offset < 1, "the cosine schedule's offset must be in (0, 1)", self.offset)
        check(self.log_snr_min < 0, "the cosine schedule's log_snr_min must be negative", self.log_snr_min)

    @property
    def _first(self) -> float:
        return self.offset / (1 + self.offset) * math.pi / 2

    @property
    def _span(self) -> float:
        return float(self._angle_beyond_first(host(self.log_snr_min)))

    def _angle_beyond_first(self, log_snr: Host) -> Host:
        first = self._first
        sine_squared = math.sin(first) ** 2 + (-log_snr).sigmoid() * math.cos(first) ** 2
        theta = torch.atan2(sine_squared.sqrt(), log_snr.sigmoid().sqrt() * math.cos(first))
        # theta - first cancels at high SNR; sin(theta - first) sin(theta + first) = sigma^2 cos^2(first) does not
        small = torch.asin(((-log_snr).sigmoid() * math.cos(first) ** 2 / torch.sin(theta + first)).clamp(max=1))
        return torch.where(theta - first < 0.5, small, theta - first)

    def log_snr(self, t: Time) -> Host:
        beyond = host(t) * self._span
        theta = self._first + beyond
        return 2 * torch.log(torch.cos(theta)) - torch.log(torch.sin(beyond) * torch.sin(theta + self._first))

    def _time(self, log_snr: Host) -> Host:
        return self._angle_beyond_first(log_snr) / self._span


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """alpha^2 falls as a sigmoid of time from `start` to `end`, rescaled to run from 1 to 0 (Jabri et al. 2022).

    Differences of sigmoids are written as hyperbolic sines, which do not cancel; alpha(1) = 0.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def _check_arguments(self) -> None:
        check(self.start < self.end, f"the sigmoid schedule's start must be under its end {self.end}", self.start)
        check(self.temperature > 0, "the sigmoid schedule's temperature must be positive", self.temperature)

    @property
    def _half_width(self) -> float:
        return (self.end - self.start) / (2 * self.temperature)

    @property
    def _tilt(self) -> float:
        return math.log(math.cosh(self.start / (2 * self.temperature)) / math.cosh(self.end / (2 * self.temperature)))

    def log_snr(self, t: Time) -> Host:
        t, width = host(t), self._half_width
        return torch.log(torch.sinh(width * (1 - t))) - torch.log(torch.sinh(width * t)) + self._tilt

    def _time(self, log_snr: Host) -> Host:
        width, level = self._half_width, log_snr - self._tilt

        def from_the_near_end(exponent: Host) -> Host:
            return torch.atanh(math.sinh(width) / (torch.exp(exponent) + math.cosh(width))) / width

        return torch.where(level > 0, from_the_near_end(level), 1 - from_the_near_end(-level))


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """The VP SDE in continuous time, beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021, eq. 32)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _check_arguments(self) -> None:
        check(0 < self.beta_min <= self.beta_max, f"beta_min must be in (0, beta_max = {self.beta_max}]", self.beta_min)

    def _integrated_beta(self, t: Time) -> Host:
        t = host(t)
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def _time_of_integrated_beta(self, integral: Host) -> Host:
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)

    def log_snr(self, t: Time) -> Host:
        return -torch.log(torch.expm1(self._integrated_beta(t)))

    def _time(self, log_snr: Host) -> Host:
        return self._time_of_integrated_beta(torch.nn.functional.softplus(-log_snr, threshold=1e9))


# -- other scales ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubVariancePreserving(VariancePreserving):
    """The sub-VP SDE: the alpha of VP with sigma = 1 - alpha^2 (Song et al. 2021, eq. 29)."""

    def scales(self, log_snr: Host) -> tuple[Host, Host]:
        ratio = torch.exp(-log_snr / 2)
        return 2 / (ratio + (ratio.square() + 4).sqrt()), 2 / (1 + (1 + 4 / ratio.square()).sqrt())

    def log_snr(self, t: Time) -> Host:
        integral = self._integrated_beta(t)
        return -integral - 2 * torch.log(-torch.expm1(-integral))

    def _time(self, log_snr: Host) -> Host:
        alpha, sigma = self.scales(log_snr)
        return self._time_of_integrated_beta(torch.where(sigma < 0.5, -torch.log1p(-sigma), -2 * alpha.log()))


class Exploding(Schedule):
    """alpha = 1: noise is added, the signal is never scaled."""

    def scales(self, log_snr: Host) -> tuple[Host, Host]:
        return torch.ones_like(log_snr), torch.exp(-log_snr / 2)


@dataclass(frozen=True)
class VarianceExploding(Exploding):
    """The VE SDE, sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^(2t) - 1) (Song et al. 2021, eq. 30).

    g^2 is geometric in t; the -1 makes sigma(0) = 0 without changing it.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def _check_arguments(self) -> None:
        check(0 < self.sigma_min < self.sigma_max, f"sigma_min must be in (0, {self.sigma_max})", self.sigma_min)

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def log_snr(self, t: Time) -> Host:
        return -2 * math.log(self.sigma_min) - torch.log(torch.expm1(host(t) * self._rate))

    def _time(self, log_snr: Host) -> Host:
        return torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / self._rate


@dataclass(frozen=True)
class EDM(Exploding):
    """sigma = sigma_max t (Karras et al. 2022)."""

    sigma_max: float = 80.0

    def _check_arguments(self) -> None:
        check(self.sigma_max > 0, "sigma_max must be positive", self.sigma_max)

    def log_snr(self, t: Time) -> Host:
        return -2 * torch.log(self.sigma_max * host(t))

    def _time(self, log_snr: Host) -> Host:
        return torch.exp(-log_snr / 2) / self.sigma_max


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2022).

    shift: added to the log-SNR; large images are trained with a negative one (Esser et al. 2024, eq. 23).
    """

    shift: float = 0.0

    def _check_arguments(self) -> None:
        check(math.isfinite(self.shift), "the log-SNR shift must be finite", self.shift)

    def scales(self, log_snr: Host) -> tuple[Host, Host]:
        return (log_snr / 2).sigmoid(), (-log_snr / 2).sigmoid()

    def log_snr(self, t: Time) -> Host:
        t = host(t)
        return 2 * (torch.log1p(-t) - torch.log(t)) + self.shift

    def _time(self, log_snr: Host) -> Host:
        return ((self.shift - log_snr) / 2).sigmoid()

    # Stated, because sampling starts at alpha = 0, where the general rule reads 0 * inf.
    def sigma_dot(self, t: Time) -> Host:
        t, k = host(t), math.exp(self.shift / 2)
        return k / (t + k * (1 - t)).square()

    def alpha_dot(self, t: Time) -> Host:
        return -self.sigma_dot(t)
