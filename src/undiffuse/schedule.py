"""Noise schedules: how much signal and how much noise there is at each time.

    x_t = alpha(t) x_0 + sigma(t) noise,        t = 0 is data, t = 1 is noise

A schedule is a law of `log_snr` over time plus a rule (`scales`) that splits a log-SNR into alpha and sigma; everything
else follows. Keeping log_snr as the primitive keeps alpha and sigma exact to a few ulp at both ends, where
`sqrt(1 - alpha^2)` would have lost its digits.

Schedules are immutable, know no step count of a sampler and no device: they compute in float64 on the host.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.registry import build

Time = float | Tensor
Host = Float64[Tensor, "..."]

FINEST_NOISE_TO_SIGNAL = 0.002  # sigma_min of Karras et al. 2022 (table 1) for data in [-1, 1]: below one 8-bit level


def host(value: Time) -> Host:
    """`value` as a float64 tensor on the host."""
    # not as_tensor(value).to(float64): a Python float would pass through float32
    if isinstance(value, Tensor):
        return value.to(device="cpu", dtype=torch.float64)
    return torch.tensor(value, dtype=torch.float64)


def along_batch(coefficient: Float64[Tensor, "*several batch"], like: Tensor) -> Tensor:
    """Per-sample coefficients (..., B), ready to multiply `like` (B, ...): moved to its device, float64 only if it is.

    The one place where a float64 host number meets a sample; half-precision samples get float32 coefficients, because
    1 - alpha^2 in bf16 is 0.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    moved = coefficient.to(device=like.device, dtype=dtype, non_blocking=True)
    return moved.reshape(*moved.shape, *[1] * (like.ndim - 1))


class Schedule(ABC):
    """alpha and sigma as functions of time in [0, 1]; log_snr falls strictly from +inf at t = 0.

    Every method takes a float or a tensor of any shape and returns float64 of that shape on the host. Derivatives live
    on the open interval (0, 1).
    """

    @abstractmethod
    def log_snr(self, t: Time) -> Host:
        """log(alpha^2 / sigma^2); +inf at t = 0, and -inf at t = 1 where alpha(1) = 0."""

    @abstractmethod
    def _time(self, log_snr: Host) -> Host:
        """The inverse of `log_snr`, which may leave [0, 1] outside the schedule's range."""

    def scales(self, log_snr: Host) -> tuple[Host, Host]:
        """(alpha, sigma) at a log-SNR; here variance preserving, alpha^2 + sigma^2 = 1."""
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def __post_init__(self) -> None:
        self._check_arguments()
        t = torch.linspace(0, 1, 1025, dtype=torch.float64)
        log_snr = self.log_snr(t)
        rising = (~(log_snr[1:] < log_snr[:-1])).nonzero()
        if len(rising):
            at = int(rising[0])
            raise InputError(
                f"{self!r:.200}: log_snr must fall strictly with time, but goes from {float(log_snr[at]):.4g} at "
                f"t = {float(t[at]):.4g} to {float(log_snr[at + 1]):.4g} at t = {float(t[at + 1]):.4g}"
            )

    def _check_arguments(self) -> None:  # noqa: B027  nothing to refuse is a fine default
        """Refuse values that make no schedule, before anything is computed from them."""

    def time(self, log_snr: Time) -> Host:
        """The time at which the log-SNR is `log_snr`, clamped to [0, 1]."""
        return self._time(host(log_snr)).clamp(0, 1)

    def alpha(self, t: Time) -> Host:
        """The scale of the signal: alpha(0) = 1; alpha(1) may be 0."""
        return self.scales(self.log_snr(t))[0]

    def sigma(self, t: Time) -> Host:
        """The scale of the noise: sigma(0) = 0."""
        return self.scales(self.log_snr(t))[1]

    def half_log_snr(self, t: Time) -> Host:
        """lambda = log(alpha / sigma), the variable of exponential integrators (Lu et al. 2022)."""
        return self.log_snr(t) / 2

    def alpha_dot(self, t: Time) -> Host:
        """d alpha / dt."""
        return _derivative(self.alpha, t)

    def sigma_dot(self, t: Time) -> Host:
        """d sigma / dt."""
        return _derivative(self.sigma, t)

    def log_snr_dot(self, t: Time) -> Host:
        """d log_snr / dt, negative."""
        return _derivative(self.log_snr, t)

    def drift(self, t: Time) -> Host:
        """f of the forward SDE dx = f x dt + g dw: d log(alpha) / dt."""
        return self.alpha_dot(t) / self.alpha(t)

    def diffusion_squared(self, t: Time) -> Host:
        """g^2 of the forward SDE: d(sigma^2)/dt - 2 f sigma^2 = -sigma^2 d(log_snr)/dt (Kingma et al. 2021)."""
        return -self.sigma(t).square() * self.log_snr_dot(t)

    @property
    def length(self) -> int | None:
        """T, the number of noise levels of a table; None for a schedule in continuous time."""
        return None

    @property
    def finest_time(self) -> float:
        """The smallest time worth calling a network at: a table's first step, else noise of 0.002 of the signal."""
        return 1 / self.length if self.length else float(self.time(-2 * math.log(FINEST_NOISE_TO_SIGNAL)))


def _derivative(function: Callable[[Time], Host], t: Time) -> Host:
    """d function / dt by automatic differentiation: exact, and one rule for every schedule."""
    with torch.inference_mode(False), torch.enable_grad():
        times = host(t).clone().detach().requires_grad_()
        # each value depends on its own time alone, so the gradient of the sum holds every derivative
        # (+ 0 t, because alpha may be constant)
        (slope,) = torch.autograd.grad((function(times) + 0 * times).sum(), times)
    return slope


def _check(holds: bool, what: str, given: object) -> None:
    if not holds:
        raise InputError(f"{what}, not {given}")


# -- tables -----------------------------------------------------------------------------------------------------------


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
        _check(len(self.alpha_bar) >= 2, "a table needs at least 2 noise levels", len(self.alpha_bar))
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


class _FromBetas(Discrete):
    """A table made by a rule for its betas."""

    steps: int

    @abstractmethod
    def _betas(self) -> Float64[Tensor, " steps"]: ...

    def _check_arguments(self) -> None:
        _check(self.steps >= 2, "a table needs at least 2 steps", self.steps)
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
class Linear(_FromBetas):
    """beta linear from `beta_start` to `beta_end` at T = 1000, times 1000 / T at another T (Ho et al. 2020)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def _betas(self) -> Float64[Tensor, " steps"]:
        return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64) * (1000 / self.steps)


@dataclass(frozen=True)
class ScaledLinear(_FromBetas):
    """sqrt(beta) linear, times 1000 / T at another T than 1000: Stable Diffusion (Rombach et al. 2022)."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def _betas(self) -> Float64[Tensor, " steps"]:
        start, end = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
        return torch.linspace(start, end, self.steps, dtype=torch.float64).square() * (1000 / self.steps)


@dataclass(frozen=True)
class CosineTable(_FromBetas):
    """The cosine schedule as a table with clipped betas (Nichol & Dhariwal 2021, eq. 17)."""

    steps: int = 1000
    offset: float = 0.008
    beta_max: float = 0.999

    def _betas(self) -> Float64[Tensor, " steps"]:
        t = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + self.offset) / (1 + self.offset) * (math.pi / 2)).square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=self.beta_max)


# -- continuous, variance preserving ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(theta) / cos(theta_0) with theta linear in t from theta_0 = offset / (1 + offset) pi/2.

    Nichol & Dhariwal (2021) in continuous time. Theirs ends at alpha(1) = 6e-17, where a predicted noise is amplified
    1e16 times; here theta ends where log_snr = `log_snr_min`.
    """

    offset: float = 0.008
    log_snr_min: float = -15.0

    def _check_arguments(self) -> None:
        _check(0 < self.offset < 1, "the cosine schedule's offset must be in (0, 1)", self.offset)
        _check(self.log_snr_min < 0, "the cosine schedule's log_snr_min must be negative", self.log_snr_min)

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
        _check(self.start < self.end, f"the sigmoid schedule's start must be under its end {self.end}", self.start)
        _check(self.temperature > 0, "the sigmoid schedule's temperature must be positive", self.temperature)

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
        _check(
            0 < self.beta_min <= self.beta_max, f"beta_min must be in (0, beta_max = {self.beta_max}]", self.beta_min
        )

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


# -- continuous, other scales -----------------------------------------------------------------------------------------


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


class _Exploding(Schedule):
    """alpha = 1: noise is added, the signal is never scaled."""

    def scales(self, log_snr: Host) -> tuple[Host, Host]:
        return torch.ones_like(log_snr), torch.exp(-log_snr / 2)


@dataclass(frozen=True)
class VarianceExploding(_Exploding):
    """The VE SDE, sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^(2t) - 1) (Song et al. 2021, eq. 30).

    g^2 is geometric in t; the -1 makes sigma(0) = 0 without changing it.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def _check_arguments(self) -> None:
        _check(0 < self.sigma_min < self.sigma_max, f"sigma_min must be in (0, {self.sigma_max})", self.sigma_min)

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def log_snr(self, t: Time) -> Host:
        return -2 * math.log(self.sigma_min) - torch.log(torch.expm1(host(t) * self._rate))

    def _time(self, log_snr: Host) -> Host:
        return torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / self._rate


@dataclass(frozen=True)
class EDM(_Exploding):
    """sigma = sigma_max t (Karras et al. 2022)."""

    sigma_max: float = 80.0

    def _check_arguments(self) -> None:
        _check(self.sigma_max > 0, "sigma_max must be positive", self.sigma_max)

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
        _check(math.isfinite(self.shift), "the log-SNR shift must be finite", self.shift)

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


# -- schedule -> schedule ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogSNRShift(Schedule):
    """The base schedule with `shift` added to its log-SNR; alpha and sigma stay on the base's rule (`scales`)."""

    base: Schedule
    shift: float

    def _check_arguments(self) -> None:
        _check(math.isfinite(self.shift), "the log-SNR shift must be finite", self.shift)

    @property
    def length(self) -> int | None:
        return self.base.length

    def scales(self, log_snr: Host) -> tuple[Host, Host]:
        return self.base.scales(log_snr)

    def log_snr(self, t: Time) -> Host:
        return self.base.log_snr(t) + self.shift

    def _time(self, log_snr: Host) -> Host:
        return self.base._time(log_snr - self.shift)


@dataclass(frozen=True)
class _ZeroTerminalTable(Discrete):
    base: Discrete

    @cached_property
    def log_alpha_bar(self) -> Float64[Tensor, " steps"]:
        alpha = (self.base.log_alpha_bar / 2).exp()
        return 2 * torch.log((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1])))


@dataclass(frozen=True)
class _ZeroTerminalContinuous(Schedule):
    base: Schedule

    def _check_arguments(self) -> None:
        alpha, sigma = self.base.scales(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64))
        if not torch.allclose(alpha.square() + sigma.square(), torch.ones_like(alpha)):
            raise InputError(f"zero terminal SNR needs a variance-preserving schedule, not {self.base!r}")

    @cached_property
    def _last(self) -> Host:
        return self.base.alpha(1.0)

    @staticmethod
    def _log_snr_of(alpha: Host, one_minus_alpha: Host) -> Host:
        return 2 * alpha.log() - torch.log(one_minus_alpha * (1 + alpha))

    def log_snr(self, t: Time) -> Host:
        alpha, sigma = self.base.scales(self.base.log_snr(t))
        one_minus_alpha = sigma.square() / ((1 + alpha) * (1 - self._last))
        return self._log_snr_of((alpha - self._last) / (1 - self._last), one_minus_alpha)

    def _time(self, log_snr: Host) -> Host:
        alpha, sigma = self.scales(log_snr)
        one_minus_alpha = sigma.square() / (1 + alpha) * (1 - self._last)
        return self.base._time(self._log_snr_of(alpha * (1 - self._last) + self._last, one_minus_alpha))


def zero_terminal_snr(base: Schedule) -> Schedule:
    """`base` with alpha shifted and scaled: its last value becomes 0, its first is kept (Lin et al. 2024, alg. 1).

    Raises: InputError when `base` is not variance preserving.
    """
    if isinstance(base, Discrete):
        return _ZeroTerminalTable(base)
    if base.length:
        raise InputError(f"rescale the table first and shift it then, not {base!r:.120}")
    return _ZeroTerminalContinuous(base)


def resolution_shift(size: int, reference: int = 64) -> float:
    """The shift that gives images of `size` pixels the noise of `reference` ones (Hoogeboom et al. 2023, eq. 8)."""
    return 2 * math.log(reference / size)


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "scaled-linear": ScaledLinear,
    "cosine-table": CosineTable,
    "table": Table,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "vp": VariancePreserving,
    "sub-vp": SubVariancePreserving,
    "ve": VarianceExploding,
    "edm": EDM,
    "flow": Flow,
}


def named(name: str, *, zero_terminal: bool = False, shift: float = 0.0, **arguments: object) -> Schedule:
    """The schedule called `name` in `SCHEDULES`, with its arguments; rescaled, then shifted, where asked."""
    for key, value, kind in (("zero_terminal", zero_terminal, bool), ("shift", shift, (int, float))):
        _check(
            isinstance(value, kind),
            f"{key} of schedule {name} must be {'a number' if key == 'shift' else 'true or false'}",
            repr(value),
        )
    if name == "flow" and not zero_terminal:
        return build("schedule", SCHEDULES, name, {"shift": float(shift), **arguments})
    schedule = build("schedule", SCHEDULES, name, arguments)
    schedule = zero_terminal_snr(schedule) if zero_terminal else schedule
    return LogSNRShift(schedule, shift) if shift else schedule
