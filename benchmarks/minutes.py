"""What so many minutes of training are worth at a given pace: the Frechet distance of the recipe `mnist`, or another.

    python benchmarks/minutes.py --data mnist.npz --runs runs/minutes --paces 393,561 --minutes 2,5,10

The result of a run depends on its number of steps and not on the clock, so a pace in images a second becomes a number
of steps, as `training.minutes` makes one, and each is trained from the start to its own end of the learning rate's
cosine. Two versions of the code at two paces are compared so by the version that is here, on a machine that may do
other work meanwhile. Measured as `undiffuse evaluate` does it, at the recipe's guidance, all through one classifier.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import turns

import undiffuse
from undiffuse import evaluation, metrics, recipes
from undiffuse.cli.train import train_run
from undiffuse.data import Split
from undiffuse.examples import conditions_in_turn
from undiffuse.experiment import load_data
from undiffuse.files import write_text
from undiffuse.training import read_metrics
from undiffuse.training.run import OVERHEAD

RESULT = "minutes.json"


def measured(run: Path, judge: evaluation.Judge, split: Split, n: int) -> dict[str, Any]:
    """What n samples of a run are worth; kept beside it."""
    if not (run / RESULT).is_file():
        model = undiffuse.load(run)
        condition = conditions_in_turn(model, split, n)
        images = evaluation.as_tensor(model.sample(n, seed=0, **condition))
        found: dict[str, Any] = {"n": n, "distance": judge.distance(images).value}
        if judge.classifier is not None:
            agreement = metrics.label_agreement(judge.classifier, images, condition[str(model.label)])
            found["recognised"] = agreement["share"]
        losses = [line["validation_loss"] for line in read_metrics(run) if "validation_loss" in line]
        write_text(run / RESULT, json.dumps({**found, "validation_loss": losses[-1]}) + "\n")
    kept: dict[str, Any] = json.loads((run / RESULT).read_text())
    return kept


def main() -> None:
    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mnist")
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--paces", type=numbers, required=True, help="images a second")
    parser.add_argument("--minutes", type=numbers, default=[2.0, 5.0, 10.0])
    parser.add_argument("--n", type=int, default=1000, help="samples to measure")
    options = parser.parse_args()
    recipe = recipes.named(options.recipe).changed([f"data.path={options.data}", *options.change])
    batch = recipe.training.batch_size

    def steps(pace: float, minutes: float) -> int:
        return round(pace * 60 * minutes * (1 - OVERHEAD) / batch)

    cells = [(pace, minutes, steps(pace, minutes)) for pace in options.paces for minutes in options.minutes]
    for _, _, count in cells:
        rare = [f"training.steps={count}", "training.validate_every=500", f"training.sample_every={count}"]
        train_run(recipe.changed(rare), options.runs / f"steps-{count}")
    split = load_data(recipe)
    judge = evaluation.Judge(split, split.train.shape, "label")
    real = judge.real(options.n)
    print(f"measured through {judge.through}; real training images: {[round(d, 3) for d in real]}")
    rows = []
    for pace, minutes, count in cells:
        found = measured(options.runs / f"steps-{count}", judge, split, options.n)
        share = f"{100 * found['recognised']:.1f} %" if "recognised" in found else ""
        distance, loss = f"{found['distance']:.3f}", f"{found['validation_loss']:.5f}"
        rows.append((f"{pace:g}", f"{minutes:g}", count, distance, share, loss))
    columns = ("images/s", "minutes", "steps", "Frechet distance", "recognised", "validation loss")
    print(turns.table(columns, rows))


if __name__ == "__main__":
    main()
