"""Schedule -> schedule."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.schedule.base import Host, Schedule, Time, check
from undiffuse.schedule.tables import Discrete


@dataclass(frozen=True)
class LogSNRShift(Schedule):
    """The base schedule with `shift` added to its log-SNR; alpha and sigma stay on the base's rule (`scales`)."""

    base: Schedule
    shift: float

    def _check_arguments(self) -> None:
        check(math.isfinite(self.shift), "the log-SNR shift must be finite", self.shift)

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
