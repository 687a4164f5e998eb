"""Samplers of one run side by side: error and quality against evaluations and seconds."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import undiffuse
from undiffuse import pipeline, samplers
from undiffuse.denoiser import BaseDenoiser
from undiffuse.errors import InputError
from undiffuse.evaluation import Say, judged
from undiffuse.evaluation.curves import as_row
from undiffuse.examples import conditions_in_turn
from undiffuse.experiment import load_experiment_data
from undiffuse.judge import Judge
from undiffuse.pipeline import Pipeline
from undiffuse.samplers.fit import REFERENCE_STEPS, truth

BATCH = 256  # samples at a time


class Contender(NamedTuple):
    """A sampler by name, on the grid that its name asks for or the run's default, in so many steps."""

    name: str
    steps: int


@dataclass
class Comparison:
    """numbers: what compare.json holds. Each of its "rows" has the sampler's "name" as it was given, "sampler", "grid",
    "steps", "evaluations" (calls of the denoiser per sample, the mean), "error" (None where noise is drawn),
    "frechet_distance", "frechet_distance_error" and "seconds" (for all samples).
    """

    numbers: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.numbers["rows"]
        return rows


def check(model: Pipeline, contenders: Sequence[Contender], guidance: float | None, n: int) -> None:
    """Find out before any work whether all can run. Raises: InputError."""
    if not contenders:
        raise InputError("a comparison needs at least 1 sampler and 1 number of steps")
    if n < 2:
        raise InputError(f"a comparison needs at least 2 samples, not {n}")
    for name, steps in contenders:
        model.check_sampling(name, steps)
    if not model.parts:
        model.guided(guidance)


def compare(
    run: Path, contenders: Sequence[Contender], n: int = 200, guidance: float | None = None,
    say: Say = lambda text, share: None,
) -> Comparison:  # fmt: skip
    """Draw n samples with each contender, from the same noise and under the same conditions.

    The error is the root-mean-square distance, as the model sees samples, from where the model's own probability flow
    takes the same noise (`undiffuse.samplers.fit.truth`). The Frechet distance is to the held-out split, through the
    `Judge` of an evaluation. guidance: by default the run's; say(what, share done): progress.

    Raises: InputError for names that are not known, samplers that cannot run, and a folder that is no run.
    """
    model = pipeline.load(run)
    check(model, contenders, guidance, n)
    split = load_experiment_data(run)[1]
    work = REFERENCE_STEPS + sum(model.sampler(name).evaluations(steps) for name, steps in contenders)
    done = 0.0

    def walked(denoisers: Sequence[BaseDenoiser], contender: Contender) -> tuple[Tensor, float]:
        """Where all samples end, and the mean number of evaluations, as counted."""
        nonlocal done
        sampler, times = model.sampler(contender.name), model.times(contender.steps, None, contender.name)
        ends, counts = [], []

        def counted(denoiser: BaseDenoiser, x: Tensor, batch: range) -> Iterator[Tensor]:
            state = yield from samplers.walk(denoiser, sampler, x, times, batch)
            assert state is not None
            counts.append(state.evaluations.double())

        for denoiser, start, batch in zip(denoisers, starts, seeds, strict=True):
            for x in counted(denoiser, start, batch):  # noqa: B007  the last is what is wanted
                done += sampler.evaluations(contender.steps) / (work * len(seeds) * contender.steps)
                say(f"{n} samples by {contender.name} in {contender.steps} steps", min(done, 1.0))
            ends.append(x)
        return torch.cat(ends), round(float(torch.cat(counts).mean()), 1)

    say("features of the real images", 0.0)
    judge = Judge(split, model.shape, judged(model))
    given = model.read(n, conditions_in_turn(model, split, n))
    seeds = [range(first, min(first + BATCH, n)) for first in range(0, n, BATCH)]
    denoisers = [
        model.guided(guidance, **{key: values[batch.start : batch.stop] for key, values in given.items()})
        for batch in seeds
    ]
    starts = [model.denoiser.prior(batch, model.shape) for batch in seeds]
    fine_ends = []
    for denoiser, x in zip(denoisers, starts, strict=True):
        say(f"the model's own solution in {REFERENCE_STEPS} steps", done)
        fine_ends.append(truth(denoiser, x))
        done += REFERENCE_STEPS / (work * len(seeds))
    fine = torch.cat(fine_ends)
    rows = []
    for contender in contenders:
        sampler = model.sampler(contender.name)
        began = time.monotonic()
        x, evaluations = walked(denoisers, contender)
        decoded = model.codec.decode(x).cpu()
        seconds = time.monotonic() - began
        error = None if sampler.stochastic else float((x - fine).double().square().mean().sqrt())
        rows.append(
            {
                "name": contender.name,
                "sampler": repr(sampler),
                "grid": model.grid(None, contender.name),
                "steps": contender.steps,
                "evaluations": evaluations,
                "error": error,
                **as_row(judge.distance(decoded)),
                "seconds": round(seconds, 3),
            }
        )
    equal = min(n, len(judge.train))
    numbers = {
        "run": str(run),
        "undiffuse": undiffuse.__version__,
        "n": n,
        "guidance": model.scale(guidance, bool(given)),
        "frechet_distance_over": judge.features.name,
        "measured_through": judge.through,
        "seeds": f"0-{n - 1}",
        "reference": judge.reference_name,
        "training_to_held_out": round(float(np.mean(judge.real(equal))), 4),
        "reference_steps": REFERENCE_STEPS,
        "rows": rows,
    }
    return Comparison(numbers)
