"""What a trained run is worth: numbers with their sample sizes, and the pictures of the report."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from undiffuse import acceleration, metrics, pipeline, plots, reconstruction
from undiffuse.codecs import Pixels
from undiffuse.data import Dataset, Split
from undiffuse.data.dataset import turns
from undiffuse.errors import InputError
from undiffuse.examples import balanced, centred, conditions_by_class, conditions_in_turn, conditions_of, drawn
from undiffuse.experiment import load_experiment_data, parameters
from undiffuse.likelihood import variational_bound
from undiffuse.metrics import classifier as classifiers
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline
from undiffuse.samplers import DDIM, DDPM, DPMSolverPlusPlus, Sampler
from undiffuse.training import read_metrics

REFERENCE = 10_000  # held-out images that distances are measured to, at most
MOST_JUDGED = 1 << 30  # bytes of training samples, and of held-out ones, that samples are compared with
SWEEP: tuple[tuple[str, Sampler, str, tuple[int, ...]], ...] = (
    ("DDIM", DDIM(), "uniform", (5, 10, 20, 50)),
    ("DPM-Solver++", DPMSolverPlusPlus(2), "log-snr", (5, 10, 20, 50)),
    ("DDPM", DDPM(), "uniform", (20, 50, 100)),
)
FULL_STEPS = 1000
BOUND_SAMPLES, BOUND_DRAWS = 512, 16  # held-out samples, and levels of each
HELD_OUT_CONDITIONS = "Under the conditions of held-out samples"
GUIDANCES = (0.0, 1.0, 2.0, 4.0)
CURVE = (1.0, 1.5, 2.0, 3.0, 5.0)  # guidance scales that are measured
CURVE_FEWEST = 100  # samples a scale, under which precision and recall say little
CURVE_SHARE = 0.2  # of the time that is left to a deadline; the sweep has the rest
CURVE_NEIGHBOUR = 3
Say = Callable[[str, float], None]


class Judge:
    """What images are measured through: a classifier trained on the real training split; without labels, pooled pixels.

    Distances go to the held-out split, which neither the model nor the classifier has been trained on. Of a set that
    is larger than `MOST_JUDGED`, a part stands for the whole, whether it is kept in memory or not.
    """

    def __init__(self, split: Split, shape: Sequence[int], label: str | None, seed: int = 0) -> None:
        split = Split(*(_judged_by(part) for part in (split.train, split.held_out)))
        self.train, self.held_out = (centred(part, shape, slice(None)) for part in (split.train, split.held_out))
        self.classifier: classifiers.Classifier | None = None
        if len(self.held_out) < 2 or len(self.train) < 2:
            raise InputError(
                f"an evaluation needs at least 2 training and 2 held-out samples, not {len(self.train)} and "
                f"{len(self.held_out)}: raise data.held_out, or add data"
            )
        if label is not None:
            labels, held_labels = split.train.conditions[label], split.held_out.conditions[label]
            self.classifier = classifiers.train(
                self.train, labels, len(split.train.classes[label]), held_out=(self.held_out, held_labels), seed=seed
            )
            self.through = self.classifier.describe()
            self.features_name = "64 classifier features"
        else:
            self.through = "the pixels, averaged down to at most 8x8 (there are no labels to train a classifier on)"
            self.features_name = "pooled pixels"
        self.reference = self.features(self.held_out[:REFERENCE])
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        if label is not None:  # classes in turn, as the samples have them: other proportions would be further away
            order = order[torch.argsort(turns(split.train.conditions[label][order]), stable=True)]
        self.shuffled_train = self.train[order]

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, d)."""
        if self.classifier is not None:
            return self.classifier.features(images)
        height, width = images.shape[-2:]
        return F.adaptive_avg_pool2d(images.float() / 255, (min(8, height), min(8, width))).flatten(1)

    def distance(self, images: Tensor) -> float:
        """Frechet distance of images to the held-out split."""
        return metrics.frechet_distance(self.features(images), self.reference)

    def real(self, n: int) -> list[float]:
        """The same distance of n real training images, for up to four disjoint draws with classes in equal numbers.

        The floor to compare with. The classifier has been trained on these images, which may set them a little apart
        from held-out ones.
        """
        draws = max(1, min(4, len(self.shuffled_train) // n))
        return [self.distance(self.shuffled_train[i * n : (i + 1) * n]) for i in range(draws)]


def _judged_by(dataset: Dataset) -> Dataset:
    """All of a data set, or as many samples as `MOST_JUDGED` bytes hold, always the same; they are read into memory."""
    count = max(2, MOST_JUDGED // math.prod(dataset.shape))
    if len(dataset) <= count:
        return dataset
    return dataset.subset(drawn(len(dataset), count))


@dataclass
class Evaluation:
    """numbers: what evaluation.json holds; pictures: PNG bytes or uint8 arrays by name, for the report."""

    numbers: dict[str, Any]
    pictures: dict[str, bytes | np.ndarray] = field(default_factory=dict)


def channels_first(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W[, C]) as a tensor (N, C, H, W)."""
    tensor = torch.from_numpy(images)
    return tensor[:, None] if tensor.ndim == 3 else tensor.movedim(-1, 1)


def evaluate(
    run: Path,
    n: int = 500,
    sweep_n: int = 200,
    deadline: float | None = None,
    say: Say = lambda text, share: None,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    compile: bool = False,
) -> Evaluation:
    """Evaluate a run folder on n samples.

    sweep_n: samples per point of the sweep over samplers, and per guidance scale; deadline: a time.monotonic() before
    which the work should be done, for which these are made fewer (not under 50; under 100, guidance scales are left
    out); say(what, share done): progress; sampler, steps, grid, guidance:
    other than the run's defaults, for the main numbers; compile: the network, for sampling (its warm-up is not in the
    seconds).

    Raises: InputError for a folder that is no run, data that is no longer there, and samplers that cannot run.
    """
    if n < 2:
        raise InputError(f"an evaluation needs at least 2 samples, not {n}")
    spec = pipeline.read_model_spec(run)
    model = pipeline.load(run)
    model.prefer(sampler, steps, grid)
    if guidance is not None:
        model.check_guidance(guidance)
        model.sampling["guidance"] = guidance
    model.check_sampling()
    if compile:
        model.compile()
    recipe, split = load_experiment_data(run)
    classes = len(model.classes)
    log = read_metrics(run)
    say("a classifier is trained on the real training images" if classes > 1 else "features of the real images", 0.0)
    judge = Judge(split, model.shape, judged(model))

    say(f"{n} samples with guidance", 0.1)
    condition = conditions_in_turn(model, split, n)
    samples, seconds = _timed(model, n, condition)
    guidance = model.sampling["guidance"] if condition else 1.0
    images = channels_first(samples)
    equal = min(n, len(judge.train), len(judge.held_out))
    ours, floors = judge.distance(images[:equal]), judge.real(equal)
    real = float(np.mean(floors))
    copying = metrics.memorisation(images[:equal], judge.train, judge.held_out[:REFERENCE])
    numbers: dict[str, Any] = {
        "run": spec["name"],
        "undiffuse": spec["resolved"]["undiffuse"],
        "trained": {
            "data": split.train.name,
            "train_samples": len(split.train),
            "held_out_samples": len(split.held_out),
            "skipped_files": len(split.train.skipped),
            "steps": max((line["step"] for line in log), default=0),
            "seconds": max((line.get("seconds", 0.0) for line in log), default=0.0),
            "batch_size": recipe.training.batch_size,
            "parameters": parameters(model.denoiser),
            "schedule": repr(model.denoiser.schedule),
            "prediction": spec["prediction"]["name"],
            "precision": spec["resolved"]["precision"],
        },
        "measured_through": judge.through,
        "samples": {
            "n": n,
            **model.sampling,
            "guidance": guidance,
            "seeds": f"0-{n - 1}",
            "seconds": round(seconds, 2),
            **acceleration.facts(model.denoiser, model.device),
        },
        "frechet_distance": {
            "over": judge.features_name,
            "samples_to_held_out": round(ours, 4),
            "training_to_held_out": round(real, 4),
            "training_draws": [round(value, 4) for value in floors],
            "ratio": round(ours / real, 4),
            "n": equal,
            "held_out_n": len(judge.reference),
        },
        "memorisation": copying,
    }
    if judge.classifier is not None:
        agreement = metrics.label_agreement(judge.classifier, images, condition[str(model.label)])
        numbers["label_agreement"] = agreement
    if isinstance(model.codec, Pixels):
        say("the variational bound of held-out samples", 0.25)
        numbers["bound"] = bound(model, split)
    evaluation = Evaluation(numbers)
    pictures = evaluation.pictures
    if reconstruction.restored(model):
        say("means of several samples for one input", 0.3)
        numbers["reconstruction"], pictures["reconstruction"] = reconstruction.measure(model, split, condition, images)

    say("the forward and the reverse process", 0.4)
    pictures["schedule"] = plots.to_png(plots.schedules({spec["schedule"]["name"]: model.denoiser.schedule}))
    encoded = model.codec.encode(judge.held_out[:1])[0]
    numbers["forward_times"] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    pictures["forward"] = plots.forward_process(
        model.denoiser.schedule, encoded, model.codec.decode, numbers["forward_times"]
    )
    pictures["losses"] = plots.to_png(plots.losses(log))
    pictures["grid"] = _class_grid(model, split, classes)
    numbers["grid"] = (
        "One row per class (the first ten)" if classes
        else HELD_OUT_CONDITIONS if condition else "Samples"
    )  # fmt: skip
    pictures["trajectory"], numbers["trajectory_times"] = _trajectory(model, split)
    pictures["neighbours"], numbers["neighbours"] = _neighbours(images, judge.train)
    if classes and any(part.optional for part in model.parts.values()):
        rows = np.concatenate([_guidance_row(model, split, scale) for scale in GUIDANCES])
        pictures["guidance"] = image.grid(rows, columns=10, padding=2)
        numbers["guidance_shown"] = list(GUIDANCES)

    say(f"16 pictures by {FULL_STEPS}-step DDPM", 0.5)
    condition16 = conditions_in_turn(model, split, 16)
    steps = FULL_STEPS
    full, seconds_full = _timed(model, 16, condition16, sampler=DDPM(), grid="uniform", steps=steps, guidance=1.0)
    pictures["full_ddpm"] = image.grid(full, columns=8, padding=2)
    numbers["full_ddpm"] = {"n": 16, "steps": steps, "guidance": 1.0, "seconds": round(seconds_full, 2)}

    calls_per_second = model.sampling["steps"] * n * (1 if guidance == 1.0 else 2) / seconds

    def affordable(calls: int, share: float, least: int) -> int:
        """How many samples of so many calls there is time for: sweep_n at most, and `least` at least."""
        left = np.inf if deadline is None else deadline - time.monotonic()
        return int(min(sweep_n, max(least, share * left * calls_per_second / calls)))

    if "guidance" in pictures and judge.classifier is not None:
        calls = model.sampling["steps"] * sum(1 if scale == 1.0 else 2 for scale in CURVE)
        many = min(affordable(calls, CURVE_SHARE, 0), len(judge.train), len(judge.held_out))
        numbers["guidance"] = _curve(model, split, judge, many, pictures, say)
    many = affordable(sum(sum(steps) for *_, steps in SWEEP), 1.0, 50)
    numbers["sweep"] = _sweep(model, split, judge, min(many, len(judge.train)), pictures, say)
    return evaluation


def bound(model: Pipeline, split: Split) -> dict[str, Any]:
    """The variational bound of held-out samples under their own conditions, in bits/dimension, by its terms."""
    rows = balanced(split.held_out, min(BOUND_SAMPLES, len(split.held_out)))
    terms: dict[str, list[Tensor]] = {"prior": [], "diffusion": [], "reconstruction": []}
    for few in rows.split(256):
        x0 = model.codec.encode(centred(split.held_out, model.shape, few)).to(model.device)
        bound = variational_bound(model.denoiser, x0, few, conditions_of(split.held_out, few, model), BOUND_DRAWS)
        for name, values in terms.items():
            values.append(getattr(bound, name).double().cpu() / math.log(2))
    whole = {name: torch.cat(values) for name, values in terms.items()}
    total = torch.stack(list(whole.values())).sum(0)
    return {
        "bits_per_dim": round(float(total.mean()), 5),
        "standard_error": round(float(total.std() / math.sqrt(len(total))), 5),
        "terms": {name: round(float(values.mean()), 5) for name, values in whole.items()},
        "n": len(total),
        "draws": BOUND_DRAWS,
    }


def judged(model: Pipeline) -> str | None:
    """The name of the label that samples are judged by: the model's first, where it has two classes or more."""
    return model.label if len(model.classes) > 1 else None


def _timed(model: Pipeline, n: int, condition: dict[str, Any], **how: Any) -> tuple[np.ndarray, float]:
    began, warm = time.monotonic(), model.warmup_seconds
    images = model.sample(n, seed=0, **condition, **how)
    return images, time.monotonic() - began - (model.warmup_seconds - warm)


def _class_grid(model: Pipeline, split: Split, classes: int) -> np.ndarray:
    """10 x 10 samples, one row per class (the first ten)."""
    rows = min(classes, 10) or 10
    condition = conditions_by_class(model, split, rows, 10)
    return image.grid(model.sample(10 * rows, seed=0, **condition), columns=10, padding=1)


def _trajectory(model: Pipeline, split: Split) -> tuple[np.ndarray, list[float]]:
    """Four samples on their way from noise to data, one row each, and the times of the columns."""
    condition = conditions_in_turn(model, split, 4)
    times = model.times()
    shown = [round(i) for i in np.linspace(0, len(times) - 1, min(11, len(times)))]
    states = list(itertools.islice(model.walk(range(4), condition=condition), len(times)))
    columns = []
    for i in shown:
        t = times[i]
        scale = torch.hypot(model.denoiser.schedule.alpha(t), model.denoiser.schedule.sigma(t))
        columns.append(image.to_array(model.codec.decode(states[i] / float(scale))))
    rows = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])
    return image.grid(rows, columns=len(shown), padding=2), [round(float(times[i]), 4) for i in shown]


def _neighbours(images: Tensor, train: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
    """Eight samples, each above its three nearest training images."""
    distances, indices = metrics.nearest(images[:8], train, k=3)
    rows = [images[:8], *(train[indices[:, j]] for j in range(3))]
    picture = image.grid(image.to_array(torch.cat(rows)), columns=8, padding=2)
    return picture, {
        "n": 8,
        "train_n": len(train),
        "distance": "root-mean-square difference of pixels, 0 to 255",
        "nearest": [round(float(d), 2) for d in distances[:, 0]],
    }


def _guidance_row(model: Pipeline, split: Split, scale: float) -> np.ndarray:
    """Ten samples at one guidance scale, from the same seeds and labels as every other row."""
    return model.sample(10, seed=0, guidance=scale, **conditions_in_turn(model, split, 10))


def _curve(
    model: Pipeline, split: Split, judge: Judge, n: int, pictures: dict[str, bytes | np.ndarray], say: Say
) -> dict[str, Any]:
    """What guidance gives and takes: label agreement, precision, recall and Frechet distance for each scale."""
    if n < CURVE_FEWEST:
        return {"n": n, "fewest": CURVE_FEWEST, "rows": []}
    condition = conditions_in_turn(model, split, n)
    held_out = judge.features(centred(split.held_out, model.shape, balanced(split.held_out, n)))

    def measured(images: Tensor) -> dict[str, float]:
        found = metrics.precision_recall(held_out, judge.features(images), CURVE_NEIGHBOUR)
        return {name: round(float(found[name]), 4) for name in ("precision", "recall")}

    rows: list[dict[str, Any]] = []
    for scale in CURVE:
        say(f"{n} samples with guidance {scale:g}", 0.55)
        samples, seconds = _timed(model, n, condition, guidance=scale)
        images = channels_first(samples)
        assert judge.classifier is not None
        agreement = metrics.label_agreement(judge.classifier, images, condition[str(model.label)])
        rows.append(
            {
                "scale": scale,
                "accuracy": round(agreement["share"], 4),
                "frechet_distance": round(judge.distance(images), 4),
                **measured(images),
                "seconds": round(seconds, 3),
            }
        )
    real = {"frechet_distance": round(float(np.mean(judge.real(n))), 4), **measured(judge.shuffled_train[:n])}
    pictures["guidance_curve"] = plots.to_png(plots.guidance(rows, real, judge.features_name))
    how = {name: model.sampling[name] for name in ("sampler", "grid", "steps")}
    return {"n": n, "k": CURVE_NEIGHBOUR, "seeds": f"0-{n - 1}", **how, "training": real, "rows": rows}


def _sweep(
    model: Pipeline, split: Split, judge: Judge, n: int, pictures: dict[str, bytes | np.ndarray], say: Say
) -> dict[str, Any]:
    """Quality against evaluations for several samplers, conditional and unguided."""
    condition = conditions_in_turn(model, split, n)
    rows: list[dict[str, Any]] = []
    shown = []
    total = sum(len(steps) for *_, steps in SWEEP)
    for name, sampler, grid, counts in SWEEP:
        for steps in counts:
            say(f"{n} samples by {name} in {steps} steps", 0.6 + 0.4 * len(rows) / total)
            images, seconds = _timed(model, n, condition, sampler=sampler, grid=grid, steps=steps, guidance=1.0)
            shown.append(images[:10])
            rows.append(
                {
                    "sampler": name,
                    "grid": grid,
                    "evaluations": sampler.evaluations(steps),
                    "frechet_distance": round(judge.distance(channels_first(images)), 4),
                    "seconds": round(seconds, 3),
                    "n": n,
                }
            )
    baseline = float(np.mean(judge.real(n)))
    pictures["sweep"] = plots.to_png(plots.quality(rows, baseline, judge.features_name))
    pictures["sweep_samples"] = image.grid(np.concatenate(shown), columns=min(10, n), padding=2)
    return {"n": n, "guidance": 1.0, "training_to_held_out": round(baseline, 4), "rows": rows}
