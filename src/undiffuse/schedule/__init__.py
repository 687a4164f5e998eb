"""Noise schedules: how much signal and how much noise there is at each time.

    x_t = alpha(t) x_0 + sigma(t) noise,        t = 0 is data, t = 1 is noise

A schedule is a law of `log_snr` over time plus a rule (`scales`) that splits a log-SNR into alpha and sigma; everything
else follows. Keeping log_snr as the primitive keeps alpha and sigma exact to a few ulp at both ends, where
`sqrt(1 - alpha^2)` would have lost its digits.

Schedules are immutable, know no step count of a sampler and no device: they compute in float64 on the host.
"""

from undiffuse.errors import InputError
from undiffuse.registry import build
from undiffuse.schedule.base import FINEST_NOISE_TO_SIGNAL, Host, Schedule, Time, along_batch, check, host
from undiffuse.schedule.continuous import (
    EDM,
    Cosine,
    Flow,
    Sigmoid,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from undiffuse.schedule.derived import LogSNRShift, resolution_shift, zero_terminal_snr
from undiffuse.schedule.learned import Learned
from undiffuse.schedule.tables import CosineTable, Discrete, Linear, ScaledLinear, Table

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
    "learned": Learned,
}


def named(name: str, *, zero_terminal: bool = False, shift: float = 0.0, **arguments: object) -> Schedule:
    """The schedule called `name` in `SCHEDULES`, with its arguments; rescaled, then shifted, where asked."""
    for key, value, kind in (("zero_terminal", zero_terminal, bool), ("shift", shift, (int, float))):
        check(
            isinstance(value, kind),
            f"{key} of schedule {name} must be {'a number' if key == 'shift' else 'true or false'}",
            repr(value),
        )
    if name == "learned" and (zero_terminal or shift):
        raise InputError(
            "a learned schedule has ends of its own: give log_snr_max and log_snr_min, no shift or rescaling"
        )
    if name == "flow" and not zero_terminal:
        return build("schedule", SCHEDULES, name, {"shift": float(shift), **arguments})
    schedule = build("schedule", SCHEDULES, name, arguments)
    schedule = zero_terminal_snr(schedule) if zero_terminal else schedule
    return LogSNRShift(schedule, shift) if shift else schedule


__all__ = [
    "EDM",
    "FINEST_NOISE_TO_SIGNAL",
    "SCHEDULES",
    "Cosine",
    "CosineTable",
    "Discrete",
    "Flow",
    "Host",
    "Learned",
    "Linear",
    "LogSNRShift",
    "ScaledLinear",
    "Schedule",
    "Sigmoid",
    "SubVariancePreserving",
    "Table",
    "Time",
    "VarianceExploding",
    "VariancePreserving",
    "along_batch",
    "host",
    "named",
    "resolution_shift",
    "zero_terminal_snr",
]
