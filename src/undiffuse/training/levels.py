"""The validation loss of each noise level, and the alarm where it rises while the training loss falls."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from undiffuse.denoiser import BaseDenoiser, Estimate
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.prediction import conversion, noise_of
from undiffuse.schedule import along_batch
from undiffuse.training.loop import Batch

LEVELS = 8  # of training's validation
LEAST_LOG_SNR = -20.0  # below it a sample says nothing
RISES = 3  # validations in a row, each above the one before
FEWEST = 8  # validations before which nothing is said: weights that are young move anyhow
LEAST_RISE = 1.05  # times the lowest loss that a level has had


@torch.no_grad()
def loss_by_level(denoiser: BaseDenoiser, batches: Iterable[Batch], levels: int = LEVELS) -> list[dict[str, float]]:
    """The mean |noise_hat - noise|^2 / D of held-out samples at each of `levels` noise levels, from the noise to data.

    The levels lie in the middle of even parts of the denoiser's range of log_snr. Sample i stands at level i mod
    `levels`, with the noise of its own seed: the same numbers at every call for the same weights. Half of the loss is
    the integrand of the bound over log_snr. Conditions are given, and none dropped.

    Returns [{"log_snr", "loss", "standard_error", "n"}, ...], a standard error of nan for a single sample; levels that
    no sample stands at are left out.

    Raises: InputError for fewer than 1 level.
    """
    if levels < 1:
        raise InputError(f"a loss by noise levels needs 1 level or more, not {levels}")
    ends = denoiser.schedule.log_snr(torch.tensor([denoiser.t_max, denoiser.t_min], dtype=torch.float64)).tolist()
    least, most = max(ends[0], LEAST_LOG_SNR), ends[1]
    points = least + (most - least) * (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    times = denoiser.schedule.time(points).clamp(denoiser.t_min, denoiser.t_max)
    errors, at, seen = [], [], 0
    for x0, conditions, seeds in batches:
        which = (seen + torch.arange(len(x0))) % levels
        level = denoiser.level(times[which], len(x0))
        noise = NoiseSource(seeds, x0.shape[1:], x0.device, x0.dtype).normal("noise")
        x_t = along_batch(level.alpha, x0) * x0 + along_batch(level.sigma, x0) * noise
        estimate: Estimate = denoiser(x_t, times[which], denoiser.encode(conditions))
        a, b = estimate.target(level)
        # by what was predicted, which keeps its digits at both ends
        missed = estimate.output - along_batch(a, x0) * x0 - along_batch(b, x0) * noise
        weight = conversion(level, (a, b), noise_of(level))[1].square()
        errors.append(missed.double().square().flatten(1).mean(1).cpu() * weight)
        at.append(which)
        seen += len(x0)
    error, where = torch.cat(errors), torch.cat(at)
    rows = []
    for k in range(levels):
        here = error[where == k]
        if len(here):
            spread = float(here.std()) if len(here) > 1 else math.nan
            rows.append(
                {
                    "log_snr": round(float(points[k]), 4),
                    "loss": float(here.mean()),
                    "standard_error": spread / math.sqrt(len(here)),
                    "n": len(here),
                }
            )
    return rows


def alarm(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """What is to be said of a log whose last validation is over-fitted: None where it is not, or was said before.

    lines: of metrics.jsonl. A level is over-fitted where its loss has risen `RISES` validations in a row and is
    `LEAST_RISE` times the lowest it was, while the mean training loss between validations fell.
    """
    validations = [line for line in lines if line.get("validation_levels")]
    if len(validations) < FEWEST or any("alarm" in line for line in lines):
        return None
    steps = [line["step"] for line in validations[-RISES - 1 :]]
    before, now = (_mean_loss(lines, *between) for between in (steps[:2], steps[-2:]))
    if before is None or now is None or now >= before:
        return None
    courses: dict[float, list[float]] = {}
    for line in validations:
        for row in line["validation_levels"]:
            courses.setdefault(row["log_snr"], []).append(row["loss"])
    found = {}
    for log_snr, course in courses.items():
        rising = all(later > earlier for earlier, later in pairwise(course[-RISES - 1 :]))
        if len(course) > RISES and rising and course[-1] > LEAST_RISE * min(course):
            found[log_snr] = course[-1] / min(course)
    if not found:
        return None
    where = ", ".join(f"{log_snr:.3g} ({times:.2f} times its lowest)" for log_snr, times in found.items())
    return (
        f"step {steps[-1]}: the validation loss rises at log-SNR {where} while the training loss falls: the model "
        "begins to learn its samples by heart; fewer steps, more data, augmentation or dropout help"
    )


def _mean_loss(lines: Sequence[Mapping[str, Any]], after: int, until: int) -> float | None:
    """The mean training loss logged at steps in (after, until]."""
    losses = [line["loss"] for line in lines if "loss" in line and after < line["step"] <= until]
    return sum(losses) / len(losses) if losses else None
