"""What a network predicts, and how one parameterization becomes another.

Everything a network can predict about x_t = alpha x_0 + sigma noise is a combination of the same two unknowns:

    F = a x_0 + b noise          (a, b) = the prediction's `target`

Two equations, two unknowns: x_t and F give x_0, the noise, the score and all the rest by one 2 x 2 solve, `conversion`.
There is no other place where parameterizations meet. docs/mathematics.md section 2 lists the closed forms.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, ones_like, zeros_like

from undiffuse.errors import InputError, unknown
from undiffuse.registry import build
from undiffuse.schedule import Schedule, Time, along_batch, host

PerSample = Float64[Tensor, "..."]
Pair = tuple[PerSample, PerSample]  # the parts of x_0 and of the noise in a combination
Combination = Callable[["Level"], Pair]  # one of the functions below, or a prediction's `target`


class Level:
    """The noise levels a batch stands on: a schedule at times t, evaluated once (float64, host).

    What follows from them is kept with them (`once`): a solver comes back to the same levels, batch after batch.
    """

    def __init__(self, schedule: Schedule, t: Time) -> None:
        self.schedule, self.t = schedule, host(t)
        self.log_snr = schedule.log_snr(self.t)
        self.alpha, self.sigma = schedule.scales(self.log_snr)
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """make(), worked out at the first call with this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def factor(self, key: Hashable, make: Callable[[], PerSample], like: Tensor) -> Tensor | float:
        """make() ready to multiply `like` (see `along_batch`); a plain 0.0 or 1.0 where it is that for every sample."""

        def ready() -> Tensor | float:
            value = make()
            for plain in (0.0, 1.0):
                if bool((value == plain).all()):
                    return plain
            return along_batch(value, like)

        return self.once((key, like.device, like.dtype, like.ndim), ready)

    @cached_property
    def log_snr_dot(self) -> PerSample:
        """d log_snr / dt."""
        return self.schedule.log_snr_dot(self.t)

    @cached_property
    def alpha_dot(self) -> PerSample:
        """d alpha / dt."""
        return self.schedule.alpha_dot(self.t)

    @cached_property
    def sigma_dot(self) -> PerSample:
        """d sigma / dt."""
        return self.schedule.sigma_dot(self.t)


def conversion(level: Level, given: Pair, wanted: Pair) -> Pair:
    """(c_x, c_F) with  wanted = c_x x_t + c_F F,  for F the combination `given` of (x_0, noise)."""
    (a, b), (wanted_a, wanted_b) = given, wanted
    determinant = level.alpha * b - level.sigma * a
    return (wanted_a * b - wanted_b * a) / determinant, (level.alpha * wanted_b - level.sigma * wanted_a) / determinant


def x0_of(level: Level) -> Pair:
    """x_0 itself."""
    return ones_like(level.alpha), zeros_like(level.alpha)


def noise_of(level: Level) -> Pair:
    """The noise, eps."""
    return zeros_like(level.alpha), ones_like(level.alpha)


def v_of(level: Level) -> Pair:
    """v = alpha noise - sigma x_0 (Salimans & Ho 2022)."""
    return -level.sigma, level.alpha


def score_of(level: Level) -> Pair:
    """grad_x log p(x_t) = -noise / sigma (Tweedie)."""
    return zeros_like(level.alpha), -1 / level.sigma


def flow_of(level: Level) -> Pair:
    """dx/dt of a sample, alpha' x_0 + sigma' noise; on the rectified schedule noise - x_0."""
    return level.alpha_dot, level.sigma_dot


def _time(level: Level) -> PerSample:
    return 1000 * level.t


def _step(level: Level) -> PerSample:
    length = level.schedule.length
    if length is None:
        raise InputError(
            f"c_noise 'step' needs a schedule that is a table, not {level.schedule!r}; use time or log-snr"
        )
    return level.t * length - 1


def _log_snr(level: Level) -> PerSample:
    return -level.log_snr.clamp(-30, 30) / 8


NOISE_LABELS: dict[str, Callable[[Level], PerSample]] = {
    "time": _time,  # 1000 t
    "step": _step,  # the integer 0..T-1 of the DDPM codebases
    "log-snr": _log_snr,  # -lambda / 4, which is log(sigma) / 4 where alpha = 1 (Karras et al. 2022)
}


@dataclass(frozen=True)
class Prediction(ABC):
    """What a network predicts: F = target, called as network(c_in x_t, c_noise).

    label: how the network is told its noise level, a key of `NOISE_LABELS`.
    """

    label: str = "time"

    def __post_init__(self) -> None:
        if self.label not in NOISE_LABELS:
            raise unknown("c_noise label", self.label, NOISE_LABELS)

    @abstractmethod
    def target(self, level: Level) -> Pair:
        """(a, b) of F = a x_0 + b noise."""

    def c_in(self, level: Level) -> PerSample:
        """The factor of x_t at the network's entrance."""
        return ones_like(level.alpha)

    def c_noise(self, level: Level) -> PerSample:
        """The number that tells the network its noise level."""
        return NOISE_LABELS[self.label](level)

    def c_skip(self, level: Level) -> PerSample:
        """The factor of x_t in x_0 = c_skip x_t + c_out F."""
        return conversion(level, self.target(level), x0_of(level))[0]

    def c_out(self, level: Level) -> PerSample:
        """The factor of F in x_0 = c_skip x_t + c_out F."""
        return conversion(level, self.target(level), x0_of(level))[1]

    def check(self, schedule: Schedule, t_min: float, t_max: float) -> None:
        """Refuse a range of times at whose ends x_0 or the noise cannot be told from F."""
        level = Level(schedule, torch.tensor([t_min, t_max], dtype=torch.float64))
        self.c_noise(level)
        for wanted in (x0_of(level), noise_of(level)):
            for coefficient in conversion(level, self.target(level), wanted):
                if not bool(coefficient.isfinite().all()):
                    raise InputError(
                        f"{type(self).__name__.lower()} prediction is undefined on [{t_min:.4g}, {t_max:.4g}] of "
                        f"{schedule!r:.120}, where alpha reaches {float(level.alpha[1]):.3g}: "
                        "use v, x0 or edm (or flow on the schedule flow), or t_max < 1"
                    )


class Noise(Prediction):
    """F = noise (Ho et al. 2020)."""

    def target(self, level: Level) -> Pair:
        return noise_of(level)


class X0(Prediction):
    """F = x_0."""

    def target(self, level: Level) -> Pair:
        return x0_of(level)


class V(Prediction):
    """F = v = alpha noise - sigma x_0 (Salimans & Ho 2022): well posed at both ends of time."""

    def target(self, level: Level) -> Pair:
        return v_of(level)


class Score(Prediction):
    """F = the score (Song et al. 2021)."""

    def target(self, level: Level) -> Pair:
        return score_of(level)


class Flow(Prediction):
    """F = dx/dt (Lipman et al. 2022)."""

    def target(self, level: Level) -> Pair:
        return flow_of(level)


@dataclass(frozen=True)
class EDM(Prediction):
    """The preconditioning of Karras et al. 2022 (table 1), for any alpha: input and target of unit variance.

    x_0 = c_skip x + c_out F with c_skip = alpha sd^2 / V, c_out = sigma sd / sqrt(V), V = sigma^2 + alpha^2 sd^2;
    solved for F this is  F = (sigma x_0 / sd - alpha sd noise) / sqrt(V).

    data_std: sd, the standard deviation of the data.
    """

    label: str = "log-snr"
    data_std: float = 0.5

    def _root(self, level: Level) -> PerSample:
        return (level.sigma.square() + (level.alpha * self.data_std).square()).sqrt()

    def target(self, level: Level) -> Pair:
        root = self._root(level)
        return level.sigma / (self.data_std * root), -level.alpha * self.data_std / root

    def c_in(self, level: Level) -> PerSample:
        return 1 / self._root(level)


PREDICTIONS: dict[str, type[Prediction]] = {
    "noise": Noise,
    "x0": X0,
    "v": V,
    "score": Score,
    "flow": Flow,
    "edm": EDM,
}


def named(name: str, **arguments: object) -> Prediction:
    """The prediction called `name` in `PREDICTIONS`."""
    return build("prediction", PREDICTIONS, name, arguments)
