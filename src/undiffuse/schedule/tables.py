"""Schedules that are tables of T noise levels."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.schedule.base import Host, Schedule, Time, check, host


class Discrete(Schedule):
    """A table of T noise levels: step i stands at t = i / T, and i = 0 is clean data.

    Between steps log_snr is linear in t (never alpha-bar, whose logarithm would bend); before the first step
    sigma / alpha is linear; where alpha_T = 0, alpha / sigma is linear on the last interval.
    """

    @property
    @abstractmethod
    def log_alpha_bar(self) -> Float64[Tensor, " steps"]:
        """log of the cumulative product of 1 - beta, at steps 1..T."""

    @cached_property
    def _table(self) -> Float64[Tensor, " steps"]:
        """log_snr at steps 1..T."""
        log_alpha_bar = self.log_alpha_bar
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    @property
    def length(self) -> int:
        return len(self._table)

    @property
    def betas(self) -> Float64[Tensor, " steps"]:
        """The variance added at each step, 1 - alpha_bar_i / alpha_bar_(i-1)."""
        return -torch.expm1(torch.diff(self.log_alpha_bar, prepend=torch.zeros(1, dtype=torch.float64)))

    def log_snr(self, t: Time) -> Host:
        table, position = self._table, host(t) * self.length
        below = position.detach().floor().long().clamp(1, self.length - 1)
        left, right, fraction = table[below - 1], table[below], position - below
        ends = right.isneginf()
        between = left + fraction * (torch.where(ends, left, right) - left)  # kept finite: it is differentiated too
        to_zero_signal = left + 2 * torch.log1p(-torch.where(ends, fraction, 0))  # likewise, at t = 1
        inner = torch.where(ends, to_zero_signal, between)
        return torch.where(position < 1, table[0] - 2 * torch.log(position), inner)

    def _time(self, log_snr: Host) -> Host:
        table = self._table
        # below = the last step whose log_snr is not under the one asked for
        below = torch.searchsorted(-table, -log_snr.contiguous(), right=True).clamp(1, self.length - 1)
        left, right = table[below - 1], table[below]
        fraction = torch.where(right.isneginf(), -torch.expm1((log_snr - left) / 2), (left - log_snr) / (left - right))
        position = torch.where(log_snr > table[0], torch.exp((table[0] - log_snr) / 2), below + fraction)
        return position / self.length


@dataclass(frozen=True)
class Table(Discrete):
    """A table given by the user: alpha_bar at steps 1..T, falling within (0, 1); the last may be 0."""

    alpha_bar: tuple[float, ...]

    @classmethod
    def from_betas(cls, betas: tuple[float, ...] | Tensor) -> "Table":
        """The table whose step i adds noise of variance betas[i - 1]."""
        return cls(tuple(torch.cumprod(1 - host(torch.as_tensor(betas, dtype=torch.float64)), 0).tolist()))

    def _check_arguments(self) -> None:
        object.__setattr__(self, "alpha_bar", tuple(self.alpha_bar))  # YAML gives a list, which is no key of anything
        check(len(self.alpha_bar) >= 2, "a table needs at least 2 noise levels", len(self.alpha_bar))
        previous = 1.0
        for step, value in enumerate(self.alpha_bar, start=1):
            last = step == len(self.alpha_bar)
            if not (0 < value < previous or (last and value == 0)):
                allowed = f"in [0, {previous})" if last else f"in (0, {previous})"
                raise InputError(f"alpha_bar of step {step} must be {allowed} (falling), not {value}")
            previous = value

    @cached_property
    def log_alpha_bar(self) -> Float64[Tensor, " steps"]:
        return torch.tensor(self.alpha_bar, dtype=torch.float64).log()


class FromBetas(Discrete):
    """A table made by a rule for its betas."""

    steps: int

    @abstractmethod
    def _betas(self) -> Float64[Tensor, " steps"]: ...

    def _check_arguments(self) -> None:
        check(self.steps >= 2, "a table needs at least 2 steps", self.steps)
        betas = self._betas()
        if not bool(((betas > 0) & (betas < 1)).all()):
            least, most = float(betas.min()), float(betas.max())
            if least <= 0:
                raise InputError(f"{self!r}: beta must be in (0, 1), but reaches {least:.4g}")
            raise InputError(
                f"{self!r}: beta must be in (0, 1), but reaches {most:.4g}; betas are scaled by 1000 / steps, "
                f"so use more than {math.floor(most * self.steps * (1 + 1e-12))} steps or smaller betas"
            )

    @cached_property
    def log_alpha_bar(self) -> Float64[Tensor, " steps"]:
        return torch.log1p(-self._betas()).cumsum(0)


@dataclass(frozen=True)
class Linear(FromBetas):
    """beta linear from `beta_start` to `beta_end` at T = 1000, times 1000 / T at another T (Ho et al. 2020)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def _betas(self) -> Float64[Tensor, " steps"]:
        return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64) * (1000 / self.steps)


@dataclass(frozen=True)
class ScaledLinear(FromBetas):
    """sqrt(beta) linear, times 1000 / T at another T than 1000: Stable Diffusion (Rombach et al. 2022)."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def _betas(self) -> Float64[Tensor, " steps"]:
        start, end = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
        return torch.linspace(start, end, self.steps, dtype=torch.float64).square() * (1000 / self.steps)


@dataclass(frozen=True)
class CosineTable(FromBetas):
    """The cosine schedule as a table with clipped betas (Nichol & Dhariwal 2021, eq. 17)."""

    steps: int = 1000
    offset: float = 0.008
    beta_max: float = 0.999

    def _betas(self) -> Float64[Tensor, " steps"]:
        t = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + self.offset) / (1 + self.offset) * (math.pi / 2)).square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=self.beta_max)
