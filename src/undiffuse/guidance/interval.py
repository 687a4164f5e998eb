"""Guidance at some noise levels only (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval ...")."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from undiffuse.denoiser import Encoded, Estimate, Sample, rows_of_encoded
from undiffuse.errors import InputError
from undiffuse.guidance.base import Guidance, Tempered
from undiffuse.schedule import Time, host

Pair = tuple[Estimate, Estimate]


class Interval(Tempered):
    """The guidance where low <= log-SNR <= high, and what it is without guidance elsewhere, at its lower cost.

    low, high: log(alpha^2 / sigma^2). The paper states sigma where alpha = 1, so that log-SNR = -2 log(sigma): from
    sigma_lo to sigma_hi there is from low = -2 log(sigma_hi) to high = -2 log(sigma_lo) here.

    Where samples of a batch stand on both sides, each side is evaluated by itself.

    Raises: InputError around what is not a guidance, and unless low < high.
    """

    def __init__(self, guidance: Guidance, low: float = -math.inf, high: float = math.inf) -> None:
        super().__init__(guidance)
        if not low < high:
            raise InputError(f"an interval of log-SNR goes from low to high with low < high, not from {low} to {high}")
        self.low, self.high = low, high

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Pair:
        batch = len(x_t)
        self.check_batch(batch)
        log_snr = self.level(t, batch).log_snr
        inside = (log_snr >= self.low) & (log_snr <= self.high)
        if bool(inside.all()):
            return self.denoiser.both(x_t, t, condition)
        if not bool(inside.any()):
            return _twice(self.denoiser.plain(x_t, t, condition))
        condition = self.encode({}) if condition is None else condition
        times, groups = host(t).expand(batch), [inside.nonzero().flatten(), (~inside).nonzero().flatten()]
        sides = [
            self._side(within, index, x_t, times, condition)
            for within, index in zip((True, False), groups, strict=True)
        ]
        plain, guided = (self._joined(parts, torch.cat(groups), times) for parts in zip(*sides, strict=True))
        return plain, guided

    def _side(
        self, inside: bool, index: Int64[Tensor, " chosen"], x_t: Sample, times: Tensor, condition: Encoded
    ) -> Pair:
        """Both estimates for some samples, which stand inside or outside."""
        guidance = self.denoiser.rows(index)
        x_t, times, condition = (
            x_t[index.to(x_t.device, non_blocking=True)],
            times[index],
            rows_of_encoded(condition, index),
        )
        return guidance.both(x_t, times, condition) if inside else _twice(guidance.plain(x_t, times, condition))

    def _joined(self, parts: Pair, index: Int64[Tensor, " batch"], times: Tensor) -> Estimate:
        """Estimates for some samples and for the others as one, on what the first says; index: whose they are."""
        first, other = parts
        output = first.output, other.output if other.target == first.target else other.combination(first.target)
        back = index.argsort().to(first.output.device, non_blocking=True)
        fractions = [part.variance_fraction for part in parts if part.variance_fraction is not None]
        return Estimate(
            torch.cat([part.x_t for part in parts])[back],
            torch.cat(output)[back],
            self.level(times, len(index)),
            first.target,
            torch.cat(fractions)[back] if len(fractions) == len(parts) else None,
        )


def _twice(plain: Estimate) -> Pair:
    return plain, plain
