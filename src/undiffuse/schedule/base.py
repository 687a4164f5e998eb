"""The contract of a schedule, and the two functions through which float64 host numbers meet tensors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError

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


def check(holds: bool, what: str, given: object) -> None:
    if not holds:
        raise InputError(f"{what}, not {given}")
