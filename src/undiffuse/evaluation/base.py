"""What a trained run is worth: numbers with their errors and how they were measured, and the pictures of the report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import undiffuse
from undiffuse import acceleration, pipeline, plots, reconstruction
from undiffuse.codecs import Pixels
from undiffuse.data import Split
from undiffuse.errors import InputError
from undiffuse.evaluation import by_level, curves, likely, measured, shown
from undiffuse.evaluation.curves import Say, timed
from undiffuse.evaluation.subject import Subject, judged
from undiffuse.examples import conditions_in_turn
from undiffuse.experiment import load_experiment_data, parameters
from undiffuse.judge import REFERENCE, Judge, as_tensor
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline
from undiffuse.plots import Picture
from undiffuse.samplers import DDPM
from undiffuse.training import read_metrics

FULL_STEPS = 1000
HELD_OUT_CONDITIONS = "Under the conditions of held-out samples"
GUIDANCES = (0.0, 1.0, 2.0, 4.0)  # scales that are shown
CURVE_SHARE = 0.2  # of the time that is left to a deadline; the sweep has the rest
FEWEST_SWEPT = 50  # samples a point of the sweep, whatever the deadline


@dataclass
class Evaluation:
    """numbers: what evaluation.json holds; pictures: plots, or uint8 pixels (H, W, C), by name, for the report."""

    numbers: dict[str, Any]
    pictures: dict[str, Picture] = field(default_factory=dict)


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
    names: Sequence[str] | None = None,
    features: str | None = None,
    moments: Path | None = None,
) -> Evaluation:
    """Evaluate a run folder on n samples.

    sweep_n: samples per point of the sweep over samplers, and per guidance scale; 0 leaves both out; deadline: a
    time.monotonic() before which the work should be done, for which these are made fewer (not under 50; under 100,
    guidance scales are left out); say(what, share done): progress; sampler, steps, grid, guidance: other than the run's
    defaults, for the main numbers; compile: the network, for sampling (its warm-up is not in the seconds); names: of
    the metrics, by default all that the features allow (`measured.METRICS`); features, moments: as `Judge` takes them.

    Raises: InputError for a folder that is no run, data that is no longer there, names that are not known, and samplers
    that cannot run.
    """
    if n < 2:
        raise InputError(f"an evaluation needs at least 2 samples, not {n}")
    names = measured.checked(names)
    model = _model(run, sampler, steps, grid, guidance, compile)
    split = load_experiment_data(run)[1]
    eye = reconstruction.perceptual(model, names)
    say("what the real images look like", 0.0)
    judge = Judge(split, model.shape, judged(model), features=measured.features(names, features), moments=moments)
    condition = conditions_in_turn(model, split, n)
    measured.check(names, judge, n, condition[str(model.label)] if judged(model) else None)
    say(f"{n} samples with guidance", 0.1)
    samples = timed(model, n, condition)
    subject = Subject(run, model, split, judge, condition, as_tensor(samples.images), samples)
    evaluation = Evaluation(_facts(subject))
    numbers, pictures = evaluation.numbers, evaluation.pictures

    say("distances, precision, recall and their kin", 0.2)
    numbers |= measured.measure(subject, names, pictures)
    if isinstance(model.codec, Pixels):
        say("how likely held-out samples are", 0.25)
        numbers |= likely.measure(model, split, names, pictures, haste=deadline is not None)
    numbers |= by_level.measure(model, split, read_metrics(run), pictures)
    if reconstruction.restored(model):
        say("means of several samples for one input", 0.3)
        found, pictures["reconstruction"] = reconstruction.measure(
            model, split, subject.condition, subject.images, subject.protocol(), eye
        )
        numbers["reconstruction"] = found
    say("the forward and the reverse process", 0.4)
    numbers |= _process(subject, pictures)
    say(f"16 pictures by {FULL_STEPS}-step DDPM", 0.5)
    numbers["full_ddpm"] = _full_ddpm(model, split, pictures)
    if not sweep_n:
        return evaluation
    calls_per_second = subject.samples.evaluations * n / subject.samples.seconds

    def affordable(calls: int, share: float, least: int) -> int:
        """How many samples of so many calls there is time for: sweep_n at most, and `least` at least."""
        left = np.inf if deadline is None else deadline - time.monotonic()
        return int(min(sweep_n, max(least, share * left * calls_per_second / calls)))

    if "guidance" in pictures and judge.classifier is not None:
        calls = model.sampling["steps"] * sum(1 if scale == 1.0 else 2 for scale in curves.CURVE)
        many = min(affordable(calls, CURVE_SHARE, 0), len(judge.train), len(judge.held_out))
        numbers["guidance"] = curves.of_guidance(model, split, judge, many, pictures, say)
    many = affordable(sum(sum(steps) for *_, steps in curves.SWEEP), 1.0, FEWEST_SWEPT)
    numbers["sweep"] = curves.of_samplers(model, split, judge, min(many, len(judge.train)), pictures, say)
    return evaluation


def _model(
    run: Path, sampler: str | None, steps: int | None, grid: str | None, guidance: float | None, compile: bool
) -> Pipeline:
    """The run's model, with these defaults of sampling. Raises: InputError where it cannot be sampled so."""
    model = pipeline.load(run)
    model.prefer(sampler, steps, grid)
    if guidance is not None:
        model.check_guidance(guidance)
        model.sampling["guidance"] = guidance
    model.check_sampling()
    if compile:
        model.compile()
    return model


def _facts(subject: Subject) -> dict[str, Any]:
    """What was trained, and what the samples are."""
    spec, log = pipeline.read_model_spec(subject.run), read_metrics(subject.run)
    split, model = subject.split, subject.model
    return {
        "run": subject.run.resolve().name,
        "undiffuse": undiffuse.__version__,
        "trained": {
            "recipe": spec["name"],
            "undiffuse": spec["resolved"]["undiffuse"],
            "data": split.train.name,
            "train_samples": len(split.train),
            "held_out_samples": len(split.held_out),
            "skipped_files": len(split.train.skipped),
            "steps": max((line["step"] for line in log), default=0),
            "seconds": max((line.get("seconds", 0.0) for line in log), default=0.0),
            "batch_size": spec["training"]["batch_size"],
            "parameters": parameters(model.denoiser),
            "schedule": repr(model.denoiser.schedule),
            "prediction": spec["prediction"]["name"],
            "precision": spec["resolved"]["precision"],
        },
        "measured_through": subject.judge.through,
        "features": subject.judge.features.name,
        "samples": {
            "n": len(subject.images),
            **subject.protocol(),
            "seconds": round(subject.samples.seconds, 2),
            **acceleration.facts(model.denoiser, model.device),
        },
    }


def _process(subject: Subject, pictures: dict[str, Picture]) -> dict[str, Any]:
    """The pictures of the way to noise and back, of the training, and of what came out."""
    model, split, judge = subject.model, subject.split, subject.judge
    classes, schedule = len(model.classes), model.denoiser.schedule
    numbers: dict[str, Any] = {"forward_times": [i / 10 for i in range(11)]}
    pictures["schedule"] = plots.schedules({pipeline.read_model_spec(subject.run)["schedule"]["name"]: schedule})
    encoded = model.codec.encode(judge.held_out[:1])[0]
    pictures["forward"] = plots.forward_process(schedule, encoded, model.codec.decode, numbers["forward_times"])
    pictures["losses"] = plots.losses(read_metrics(subject.run))
    pictures["grid"] = shown.class_grid(model, split, classes)
    numbers["grid"] = (
        "One row per class (the first ten)" if classes
        else HELD_OUT_CONDITIONS if subject.condition else "Samples"
    )  # fmt: skip
    pictures["trajectory"], numbers["trajectory_times"] = shown.trajectory(model, split)
    pictures["neighbours"], numbers["neighbours"] = shown.neighbours(subject.images, judge.train)
    sets = {"samples": subject.images, "held-out images": judge.held_out[:REFERENCE]}
    pictures["spectra"], numbers["spectra"] = shown.spectra(sets)
    pictures["histograms"], numbers["histograms"] = shown.histograms(sets)
    if classes and any(part.optional for part in model.parts.values()):
        few = conditions_in_turn(model, split, 10)  # the same seeds and classes in each row
        rows = np.concatenate([model.sample(10, seed=0, guidance=scale, **few) for scale in GUIDANCES])
        pictures["guidance"] = image.grid(rows, columns=10, padding=2)
        numbers["guidance_shown"] = list(GUIDANCES)
    return numbers


def _full_ddpm(model: Pipeline, split: Split, pictures: dict[str, Picture]) -> dict[str, Any]:
    how: dict[str, Any] = {"sampler": DDPM(), "grid": "uniform", "steps": FULL_STEPS, "guidance": 1.0}
    images, seconds, _ = timed(model, 16, conditions_in_turn(model, split, 16), **how)
    pictures["full_ddpm"] = image.grid(images, columns=8, padding=2)
    return {"n": 16, "steps": FULL_STEPS, "guidance": 1.0, "seconds": round(seconds, 2)}
