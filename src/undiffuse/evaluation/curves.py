"""Quality against what sampling can be given more or less of: evaluations, seconds, guidance."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import undiffuse
from undiffuse import metrics, plots
from undiffuse.data import Split
from undiffuse.examples import balanced, centred, conditions_in_turn
from undiffuse.judge import Judge, as_tensor
from undiffuse.metrics import Measurement
from undiffuse.metrics.precision_recall import K
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline
from undiffuse.plots import Picture
from undiffuse.samplers import DDIM, DDPM, DPMSolverPlusPlus, Sampler

SWEEP: tuple[tuple[str, Sampler, str, tuple[int, ...]], ...] = (
    ("DDIM", DDIM(), "uniform", (5, 10, 20, 50)),
    ("DPM-Solver++", DPMSolverPlusPlus(2), "log-snr", (5, 10, 20, 50)),
    ("DDPM", DDPM(), "uniform", (20, 50, 100)),
)
CURVE = (1.0, 1.5, 2.0, 3.0, 5.0)  # guidance scales that are measured
CURVE_FEWEST = 100  # samples a scale, under which precision and recall say little
Say = Callable[[str, float], None]


def as_row(*measurements: Measurement) -> dict[str, float]:
    """Values with their errors, as parts of a row: "frechet_distance" and "frechet_distance_error", say."""
    row = {}
    for found in measurements:
        name = "frechet_distance" if found.metric == "fid" else found.metric.replace("-", "_")
        row[name] = round(found.value, 4)
        if found.error is not None:
            row[f"{name}_error"] = round(found.error, 4)
    return row


class Timed(NamedTuple):
    """Samples, the seconds that they took, and the evaluations of the network for one of them, the mean."""

    images: np.ndarray
    seconds: float
    evaluations: float


def timed(model: Pipeline, n: int, condition: dict[str, Any], **how: Any) -> Timed:
    """n samples from the seeds 0 to n - 1, without the time of a network's compilation; evaluations are counted."""
    rows: list[int] = []
    counting = model.denoiser.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    began, warm = time.monotonic(), model.warmup_seconds
    try:
        images = model.sample(n, seed=0, **condition, **how)
    finally:
        counting.remove()
    return Timed(images, time.monotonic() - began - (model.warmup_seconds - warm), round(sum(rows) / n, 1))


def of_guidance(
    model: Pipeline, split: Split, judge: Judge, n: int, pictures: dict[str, Picture], say: Say
) -> dict[str, Any]:
    """What guidance gives and takes: label agreement, precision, recall and Frechet distance for each scale."""
    if n < CURVE_FEWEST:
        return {"n": n, "fewest": CURVE_FEWEST, "rows": []}
    condition = conditions_in_turn(model, split, n)
    held_out = judge.see(centred(split.held_out, model.shape, balanced(split.held_out, n)))

    def measured(images: Tensor) -> dict[str, float]:
        found = metrics.measure(judge.see(images), held_out, ["precision", "recall"])
        return as_row(*found, judge.distance(images))

    rows: list[dict[str, Any]] = []
    for scale in CURVE:
        say(f"{n} samples with guidance {scale:g}", 0.55)
        samples, seconds, evaluations = timed(model, n, condition, guidance=scale)
        images = as_tensor(samples)
        assert judge.classifier is not None
        agreement = metrics.label_agreement(judge.classifier, images, condition[str(model.label)])
        share = agreement["share"]
        accuracy = {"accuracy": round(share, 4), "accuracy_error": round((share * (1 - share) / n) ** 0.5, 4)}
        rows.append(
            {"scale": scale, **accuracy, **measured(images), "evaluations": evaluations, "seconds": round(seconds, 3)}
        )
    real = measured(judge.shuffled_train[:n]) | {"frechet_distance": round(float(np.mean(judge.real(n))), 4)}
    pictures["guidance_curve"] = plots.guidance(rows, real, judge.features.name)
    pictures["guidance_trade"] = plots.trade(rows, real)
    how = {name: model.sampling[name] for name in ("sampler", "grid", "steps")}
    return {"n": n, "k": K, **how, **_common(judge, n), "training": real, "rows": rows}


def of_samplers(
    model: Pipeline, split: Split, judge: Judge, n: int, pictures: dict[str, Picture], say: Say
) -> dict[str, Any]:
    """Quality against evaluations for several samplers, conditional and unguided."""
    condition = conditions_in_turn(model, split, n)
    rows: list[dict[str, Any]] = []
    shown = []
    total = sum(len(steps) for *_, steps in SWEEP)
    for name, sampler, grid, counts in SWEEP:
        for steps in counts:
            say(f"{n} samples by {name} in {steps} steps", 0.6 + 0.4 * len(rows) / total)
            how: dict[str, Any] = {"sampler": sampler, "grid": grid, "steps": steps, "guidance": 1.0}
            images, seconds, evaluations = timed(model, n, condition, **how)
            shown.append(images[:10])
            rows.append(
                {
                    "sampler": name,
                    "grid": grid,
                    "evaluations": evaluations,
                    **as_row(judge.distance(as_tensor(images))),
                    "seconds": round(seconds, 3),
                    "n": n,
                }
            )
    baseline = float(np.mean(judge.real(n)))
    pictures["sweep"] = plots.quality(rows, baseline, judge.features.name)
    pictures["sweep_samples"] = image.grid(np.concatenate(shown), columns=min(10, n), padding=2)
    return {"n": n, "guidance": 1.0, **_common(judge, n), "training_to_real": round(baseline, 4), "rows": rows}


def _common(judge: Judge, n: int) -> dict[str, str]:
    """What all rows of a curve have in common."""
    return {
        "seeds": f"0-{n - 1}",
        "features": judge.features.name,
        "reference": judge.reference_name,
        "undiffuse": undiffuse.__version__,
    }
