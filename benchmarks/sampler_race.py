"""The sampler race: error to the exact ODE solution at equal evaluations, against every peer's every configuration.

    python benchmarks/sampler_race.py [--peers peers.json] [--problems ring,low-rank] [--counts 5,10] [--out race.json]

For each problem and schedule of problems.py and each number of evaluations it prints, as ratios to the best of all
peers' configurations in that cell (peers.py: chosen with the answer in hand, which no user can do):

    ours       our best configuration, over solvers and named grids, chosen likewise
    default    the package's one default, sampler and grid, the same in every cell
    fitted     the default sampler on a grid fitted to the problem (samplers/fit.py), on other trajectories than these
    best fit   the best of several samplers, each on its fitted grid

Evaluations are counted: a solver of two stages gets half of the steps. Below 1 is better than the peers' best.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peers import COUNTS, failures, peers_table
from problems import PROBLEMS, SCHEDULES, Problem, keep_memory, references, rms_error
from rich.console import Console

from undiffuse.pipeline import DEFAULTS
from undiffuse.samplers import Sampler, grid, named, sample
from undiffuse.samplers.fit import fit

SOLVERS = (  # those that come near the front anywhere; Euler, Heun and their like do not
    "adams:order=2", "adams:order=3", "adams:order=4", "adams:order=2,corrector=true", "adams:order=3,corrector=true",
    "lms:order=3", "dpm:order=3", "dpm++:order=2", "dpm++:order=3", "dpm++-single:order=2", "dpm++-single:order=3",
    "deis:order=3", "deis:variable=lambda", "ipndm:order=3", "ipndm:order=4", "pndm", "unipc:order=2",
    "unipc:order=2,weights=bh1", "unipc:order=2,weights=exact", "unipc:order=3", "unipc:order=3,weights=bh1",
    "unipc:order=2,form=noise", "unipc:order=3,form=noise", "unipc:variable=index", "unipc:order=3,variable=index",
    "unipc:order=3,variable=ratio",
)  # fmt: skip
GRIDS = ("uniform", "quadratic", "log-snr", "karras", "beta", "arc-length", "angle", "vp-quadratic")
STOPPING = ("quadratic", "log-snr", "karras", "angle")  # also walked to t_min and no further, as some peers are
FITTED = (DEFAULTS["sampler"], "unipc:order=2,weights=exact", "adams:order=3")
# the finest level that any peer calls; the exact denoiser knows all
T_MIN = {"linear": 1e-4, "cosine": 1e-4, "edm": 0.002 / 80}
TRAJECTORIES_SEED, HELD_OUT_SEED = 1, 2  # of fitting; the race itself is run on seed 0
FIT_BATCH = 16  # trajectories at least
FEW = 10  # evaluations up to which the fitted grid has a goal of its own


def steps_for(sampler: Sampler, evaluations: int) -> int:
    """The most steps that cost no more than that many evaluations; 0 where one step costs more."""
    return max((n for n in range(1, evaluations + 1) if sampler.evaluations(n) <= evaluations), default=0)


def race(problem: Problem, schedule_name: str, counts: Iterable[int], peers: Path | None) -> Iterator[dict[str, Any]]:
    """One row for each number of evaluations."""
    schedule = SCHEDULES[schedule_name]
    denoiser, t_min = problem.denoiser(schedule), T_MIN[schedule_name]
    denoiser.t_min = t_min
    start, end = references(problem, schedule)
    trajectories = references(problem, schedule, TRAJECTORIES_SEED, max(problem.batch, FIT_BATCH)).x_T
    held_out = references(problem, schedule, HELD_OUT_SEED).x_T

    def error(name: str, times: torch.Tensor) -> float:
        try:
            found = rms_error(sample(denoiser, named(name), start, times), end)
        except ValueError:  # InputError: a solver that would leave the range on this grid
            return math.inf
        return found if math.isfinite(found) else math.inf

    for count, table in peers_table(problem, schedule_name, counts, peers).items():
        best_peer = min((e, name) for name, e in table.items() if math.isfinite(e))
        ours = {}
        for name in SOLVERS:
            steps = steps_for(named(name), count)
            for grid_name in GRIDS if steps else ():
                ours[f"{name} @ {grid_name}"] = error(name, grid.named(grid_name, schedule, steps, t_min, 1.0))
            for grid_name in STOPPING if steps else ():
                for last in {t_min, schedule.finest_time}:
                    times = grid.named(grid_name, schedule, steps + 1, last, 1.0)[:-1]
                    ours[f"{name} @ {grid_name}, stopping at {last:g}"] = error(name, times)
        best = min((e, name) for name, e in ours.items())
        default = error(DEFAULTS["sampler"], grid.named(DEFAULTS["grid"], schedule, count, t_min, 1.0))
        fits = {n: fit(denoiser, named(n), count, trajectories, held_out) for n in FITTED}
        fitted = {name: error(name, found.times) for name, found in fits.items()}
        best_fit = min((e, name) for name, e in fitted.items())
        yield {
            "problem": problem.name, "schedule": schedule_name, "evaluations": count,
            "peers": best_peer[0], "peer": best_peer[1], "ours": best[0] / best_peer[0], "our": best[1],
            "default": default / best_peer[0], "fitted": fitted[DEFAULTS["sampler"]] / best_peer[0],
            "best fit": best_fit[0] / best_peer[0], "best fitted": best_fit[1],
            "fit evaluations": fits[DEFAULTS["sampler"]].evaluations,
        }  # fmt: skip


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def single_best(tables: dict[tuple[str, str, int], dict[str, float]]) -> tuple[float, str]:
    """The one peer configuration with the least geometric mean against the best of each cell, and that mean."""
    best = {cell: min(e for e in table.values() if math.isfinite(e)) for cell, table in tables.items()}
    everywhere = set.intersection(*({n for n, e in t.items() if math.isfinite(e)} for t in tables.values()))
    return min(
        ((geometric_mean(tables[cell][name] / best[cell] for cell in tables), name) for name in everywhere),
        default=(math.nan, "none runs in every cell"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--peers", type=Path, help="a JSON file that keeps the peers' half between runs")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    counts = [int(count) for count in given.counts.split(",")]
    console = Console(width=200, highlight=False)
    console.print(f"{'cell':<22}{'peers':>9}  {'ours':>5} {'default':>7} {'fitted':>6} {'best fit':>8}  peer | our")
    rows, tables = [], {}
    for problem in given.problems.split(","):
        for schedule in given.schedules.split(","):
            for row in race(PROBLEMS[problem], schedule, counts, given.peers):
                rows.append(row)
                cell = f"{problem} {schedule} {row['evaluations']}"
                console.print(
                    f"{cell:<22}{row['peers']:9.2e}  {row['ours']:5.2f} {row['default']:7.2f} {row['fitted']:6.2f} "
                    f"{row['best fit']:8.2f}  {row['peer']} | {row['our']}"
                )
            for count, table in peers_table(PROBLEMS[problem], schedule, counts, given.peers).items():
                tables[problem, schedule, count] = table
    few = [row for row in rows if row["evaluations"] <= FEW]
    single, name = single_best(tables)
    summary = {
        "cells": len(rows),
        "ours at or below the peers' best, share of cells": sum(row["ours"] <= 1 for row in rows) / len(rows),
        f"best fit at most half, up to {FEW} evaluations, share of cells": sum(r["best fit"] <= 0.5 for r in few)
        / max(len(few), 1),
        "geometric mean of ours": geometric_mean(row["ours"] for row in rows),
        "geometric mean of the default": geometric_mean(row["default"] for row in rows),
        "geometric mean of the default on fitted grids": geometric_mean(row["fitted"] for row in rows),
        "geometric mean of the best fit": geometric_mean(row["best fit"] for row in rows),
        "geometric mean of the best single configuration of the peers": single,
        "that configuration": name,
        "peers' configurations that failed": len(failures),
    }
    for what, value in summary.items():
        console.print(f"{value if isinstance(value, (int, str)) else round(value, 3)!s:>8}  {what}")
    if given.out:
        given.out.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
