"""A measured number: its sample size, its error, and what must be equal for another to be compared with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from undiffuse.errors import InputError

Z = 1.959963984540054  # 95 % of a normal law lies within so many standard deviations
WORDS = {
    "fid": "FID",
    "kid": "KID",
    "inception-score": "Inception Score",
    "frechet-distance": "Frechet distance",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "clip-score": "CLIP score",
}
OF_INCEPTION = {"fid", "kid", "inception-score"}  # whose names say which features they are over


@dataclass(frozen=True)
class Measurement:
    """One number of a set of samples.

    Args:
        metric: which, as METRICS names it; "fid" where a Frechet distance is over Inception-v3 features.
        value: the number, in the metric's unit.
        error: its standard error, or None where there is no way to know; `error_by` then says why.
        error_by: how the error was found: "infinitesimal jackknife", "U-statistic", "over samples", ...
        interval: 95 % (`interval` below makes it of value and error); None without an error.
        n: how many samples.
        reference_n: how many real ones they were compared with; None where none were, or where it is not known.
        settings: what must be equal for two values to be compared: the features' name and key, k, splits, ...
        of: the class that it is of, None for all samples.

    Raises: InputError for a value that is NaN or infinite.
    """

    metric: str
    value: float
    error: float | None
    error_by: str
    interval: tuple[float, float] | None
    n: int
    reference_n: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    of: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError(f"{self.metric} of {self.n} samples is not a number: {self.value}")

    @property
    def label(self) -> str:
        """What it is in words: "FID", "Frechet distance over 64 classifier features", "Recall over ..., class 3"."""
        over, inception = self.settings.get("features"), self.settings.get("inception")
        words = WORDS.get(self.metric, self.metric.replace("-", " ").capitalize())
        if self.metric == "kid" and not inception:
            words = "Kernel distance"
        words += f" over {over}" if over and not (inception and self.metric in OF_INCEPTION) else ""
        return words if self.of is None else f"{words}, class {self.of}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words, for a JSON file."""
        of = {} if self.of is None else {"class": self.of}
        return {
            "metric": self.metric,
            "label": self.label,
            **of,
            "value": self.value,
            "error": self.error,
            "error_by": self.error_by,
            "interval": None if self.interval is None else list(self.interval),
            "n": self.n,
            "reference_n": self.reference_n,
            "settings": dict(self.settings),
        }


def interval(
    value: float, error: float | None, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float] | None:
    """value -+ 1.96 errors, 95 % of a normal law, within the metric's range [low, high]; None without an error."""
    return None if error is None else (max(low, value - Z * error), min(high, value + Z * error))


def mean(metric: str, values: Float[Tensor, " n"], **settings: Any) -> Measurement:
    """The mean over samples, with the standard error of a mean, s / sqrt(n).

    Raises: InputError for no value, and for values that are NaN or infinite.
    """
    if values.ndim != 1 or not len(values):
        raise InputError(f"a mean needs values (N,), N >= 1, not {tuple(values.shape)}")
    values = values.detach().cpu().double()
    value, n = float(values.mean()), len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else None
    error_by = "over samples" if n > 1 else "none: one sample has no spread"
    return Measurement(metric, value, error, error_by, interval(value, error), n, settings=settings)
