"""Objective x weight on MNIST: the same network, data and number of steps, every cell trained and measured alike.

    python benchmarks/objectives.py --data mnist.npz --runs runs/objectives          train what is missing, then measure
    python benchmarks/objectives.py --runs runs/objectives --table                   the table of what is there

Every cell is the recipe `mnist` with the changes below, for a fixed number of steps: what ten minutes on two CPU cores
come to, so that the comparison does not depend on what else the machine does. Measured as `undiffuse evaluate` does it:
the variational bound in bits per dimension, and with and without guidance the share of samples that are recognised and
their Frechet distance, all from the same seeds and through one classifier.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import undiffuse
from undiffuse import evaluation, likelihood, metrics, recipes
from undiffuse.cli.train import train_run
from undiffuse.data import Split
from undiffuse.examples import balanced, centred, conditions_in_turn, conditions_of
from undiffuse.experiment import load_data
from undiffuse.files import write_text
from undiffuse.pipeline import Pipeline
from undiffuse.training import read_metrics

RESULT = "objective.json"
STEPS = 3000
CELLS: dict[str, list[str]] = {
    "v, simple": ["objective.weight=simple"],
    "noise, simple": ["prediction=noise", "objective.weight=simple"],
    "v, min-snr": ["objective.weight=min-snr"],
    "v, sigmoid": ["objective.weight=sigmoid"],
    "edm, edm": ["prediction=edm", "objective.weight=edm", "objective.times=log-normal"],
    "flow, simple": [
        *("schedule=flow", "prediction=flow", "objective.weight=simple", "objective.times=logit-normal"),
    ],
    "v, bound, importance": ["objective.weight=bound", "objective.times=importance"],
    "noise, hybrid, learned variance": [
        *("prediction=noise", "objective.weight=simple", "network.learned_variance=true"),
    ],
    "v, bound, learned schedule": ["objective.weight=bound", "schedule=learned"],
    "x0, simple": ["prediction=x0", "objective.weight=simple"],
    "v, p2": ["objective.weight=p2"],
    "edm, edm, uncertainty": [
        *("prediction=edm", "objective.weight=edm", "objective.times=log-normal", "objective.uncertainty=true"),
    ],
}
GUIDANCES = (1.0, 1.5)
COLUMNS = (
    "prediction, weight",
    "bound, bits/dim",
    *(f"{what}, guidance {scale:g}" for scale in GUIDANCES for what in ("recognised", "Frechet distance")),
)


def folder(runs: Path, cell: str) -> Path:
    return runs / cell.replace(", ", "-").replace(" ", "-")


def bound(model: Pipeline, split: Split) -> dict[str, Any]:
    """The variational bound of 512 held-out samples under their own conditions, in bits/dimension, 16 levels each."""
    rows, found = balanced(split.held_out, 512), []
    for few in rows.split(256):
        x0 = model.codec.encode(centred(split.held_out, model.shape, few)).to(model.device)
        conditions = conditions_of(split.held_out, few, model)
        found.append(likelihood.variational_bound(model.denoiser, x0, few, conditions, 16).bits_per_dim)
    bits = metrics.measurement.mean("bits-per-dim", torch.cat(found))
    return {"bits_per_dim": bits.value, "standard_error": bits.error, "n": bits.n}


def measure(run: Path, judge: evaluation.Judge, split: Split, n: int) -> dict[str, Any]:
    """The bound, and for each scale of guidance what a thousand samples are worth."""
    model = undiffuse.load(run)
    condition = conditions_in_turn(model, split, n)
    rows = []
    for scale in GUIDANCES:
        images = evaluation.as_tensor(model.sample(n, seed=0, guidance=scale, **condition))
        assert judge.classifier is not None
        agreement = metrics.label_agreement(judge.classifier, images, condition[str(model.label)])
        rows.append({"guidance": scale, "recognised": agreement["share"], "distance": judge.distance(images).value})
    losses = [line["validation_loss"] for line in read_metrics(run) if "validation_loss" in line]
    return {"n": n, "bound": bound(model, split), "rows": rows, "validation_loss": losses[-1]}


def table(runs: Path) -> str:
    """What was measured, as Markdown, by the Frechet distance without guidance."""
    found = {cell: json.loads(path.read_text()) for cell in CELLS if (path := folder(runs, cell) / RESULT).is_file()}
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for cell, numbers in sorted(found.items(), key=lambda item: item[1]["rows"][0]["distance"]):
        bits, error = (numbers["bound"][name] for name in ("bits_per_dim", "standard_error"))
        values = [f"{bits:.3f} ({error:.3f})"]
        for row in numbers["rows"]:
            values += [f"{100 * row['recognised']:.1f} %", f"{row['distance']:.3f}"]
        lines.append(f"| {' | '.join((cell, *values))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="mnist.npz")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--n", type=int, default=1000, help="samples to measure")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    options = parser.parse_args()
    for cell in () if options.table or options.measure_only else options.cells:
        rare = ["training.validate_every=1000", f"training.sample_every={options.steps}"]
        changes = [f"training.steps={options.steps}", *rare, *CELLS[cell]]
        train_run(recipes.named("mnist").changed([f"data.path={options.data}", *changes]), folder(options.runs, cell))
    if not (options.table or options.train_only):
        recipe = recipes.named("mnist").changed([f"data.path={options.data}"])
        split = load_data(recipe)
        judge = evaluation.Judge(split, split.train.shape, "label")
        print(f"measured through {judge.through}; real training images: {judge.real(options.n)}")
        for cell in options.cells:
            run = folder(options.runs, cell)
            trained = max((line["step"] for line in read_metrics(run)), default=0) >= options.steps
            if trained and not (run / RESULT).is_file():
                write_text(run / RESULT, json.dumps(measure(run, judge, split, options.n), indent=2) + "\n")
                print(table(options.runs), flush=True)
    print(table(options.runs))


if __name__ == "__main__":
    main()
