"""Objective x weight on MNIST: the same network, data and number of steps, every cell trained and measured alike.

    python benchmarks/objectives.py --data mnist.npz --runs runs/objectives          train what is missing, then measure
    python benchmarks/objectives.py --runs runs/objectives --table                   the table of what is there

Every cell is the recipe `mnist` with the changes below, for a fixed number of steps: what ten minutes on two CPU cores
come to, so that the comparison does not depend on what else the machine does. Measured as `undiffuse evaluate` does it:
Frechet distance and recognised share at the recipe's guidance, and the variational bound in bits per dimension.
"""

import argparse
import json
from pathlib import Path

from undiffuse import recipes
from undiffuse.cli.evaluate import evaluate_run
from undiffuse.cli.train import train_run

STEPS = 3000
CELLS: dict[str, list[str]] = {
    "v, simple": [],
    "noise, simple": ["prediction=noise"],
    "v, min-snr": ["objective.weight=min-snr"],
    "v, sigmoid": ["objective.weight=sigmoid"],
    "edm, edm": ["prediction=edm", "objective.weight=edm", "objective.times=log-normal"],
    "flow, simple": ["schedule=flow", "prediction=flow", "objective.times=logit-normal"],
    "v, bound, importance": ["objective.weight=bound", "objective.times=importance"],
    "noise, hybrid, learned variance": ["prediction=noise", "network.learned_variance=true"],
    "v, bound, learned schedule": ["objective.weight=bound", "schedule=learned", "prediction.label=log-snr"],
    "x0, simple": ["prediction=x0"],
    "v, p2": ["objective.weight=p2"],
    "edm, edm, uncertainty": [
        *("prediction=edm", "objective.weight=edm", "objective.times=log-normal", "objective.uncertainty=true"),
    ],
}
COLUMNS = ("prediction, weight", "recognised", "Frechet distance", "ratio to real", "bound, bits/dim")


def folder(runs: Path, cell: str) -> Path:
    return runs / cell.replace(", ", "-").replace(" ", "-")


def table(runs: Path) -> str:
    """What was measured, as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for cell in CELLS:
        path = folder(runs, cell) / "evaluation.json"
        if path.is_file():
            found = json.loads(path.read_text())
            share, distance, bound = found["label_agreement"], found["frechet_distance"], found.get("bound")
            bits = f"{bound['bits_per_dim']:.3f} ({bound['standard_error']:.3f})" if bound else ""
            recognised, frechet = f"{100 * share['share']:.1f} %", f"{distance['samples_to_held_out']:.3f}"
            ratio = f"{distance['ratio']:.2f}"
            lines.append(f"| {' | '.join((cell, recognised, frechet, ratio, bits))} |")
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
    options = parser.parse_args()
    for cell in () if options.table else options.cells:
        run = folder(options.runs, cell)
        if not (run / "evaluation.json").is_file():
            rare = ["training.validate_every=1000", f"training.sample_every={options.steps}"]
            changes = [f"training.steps={options.steps}", *rare, *CELLS[cell]]
            train_run(recipes.named("mnist").changed([f"data.path={options.data}", *changes]), run)
            if not options.train_only:
                evaluate_run(run, options.n, 2)
    print(table(options.runs))


if __name__ == "__main__":
    main()
