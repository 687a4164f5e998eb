"""Metrics of 10,000 samples at 2,048 features beside torchmetrics, in turns; and what precision and recall take.

    python benchmarks/metrics.py [--n 10000] [--features 2048] [--rounds 3] [--no-save]

Both are handed features, float32, a batch of --batch at a time, for both sets, and give the Frechet distance:
torchmetrics' FrechetInceptionDistance through a module that gives back what it is given. CPU seconds are of the
process, so what other programs do does not count; the ratio is of the medians, below 1 where we are faster.
"""

import argparse
import gc
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from unittest import mock

import torch
import turns

from undiffuse.metrics import Moments, frechet_distance, kernel_distance
from undiffuse.metrics.frechet import measure_frechet_distance
from undiffuse.metrics.precision_recall import neighbourhoods
from undiffuse.metrics.seen import Seen


def show_torchmetrics() -> None:
    """Import torch_fidelity for torchmetrics; it imports torchvision, for things not used here."""
    if importlib.util.find_spec("torchvision") is None:
        names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
        sys.modules |= {name: mock.MagicMock() for name in names}
        importlib.import_module("torch_fidelity")
        for name in names:  # torchmetrics asks whether it is installed, and must hear that it is not
            del sys.modules[name]


def sets(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose variances fall by 1,000 over the directions, as those of networks do."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator) / d**0.5 * torch.logspace(0, -1.5, d)
    return tuple(scale * torch.randn(n, d, generator=generator) @ mix + 0.5 for scale in (1.0, 1.1))  # type: ignore


def cpu_seconds(run: Callable[[], object]) -> float:
    """One run, timed by what the process used."""
    began = time.process_time()
    run()
    return time.process_time() - began


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch held at once above what it held before, by its own records of allocations."""
    gc.collect()
    held = most = 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    show_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, generated = sets(options.n, options.features)
    values: dict[str, float] = {}

    def ours() -> None:
        moments = [Moments.empty(options.features) for _ in range(2)]
        for side, features in zip(moments, (real, generated), strict=True):
            for batch in features.split(options.batch):
                side.update(batch)
        values["ours"] = frechet_distance(*moments)

    def theirs() -> None:
        metric = FrechetInceptionDistance(torch.nn.Identity(), input_img_size=(options.features,))
        metric.set_dtype(torch.float64)
        for is_real, features in ((True, real), (False, generated)):
            for batch in features.split(options.batch):
                metric.update(batch, real=is_real)
        values["torchmetrics"] = float(metric.compute())

    seconds: dict[str, list[float]] = {"ours": [], "torchmetrics": []}
    for timed in range(options.rounds + 1):
        for name, run in (("ours", ours), ("torchmetrics", theirs)):
            spent = cpu_seconds(run)
            seconds[name] += [spent] if timed else []
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    ratio = medians["ours"] / medians["torchmetrics"]
    seen = [Seen("given", "", Moments.of(features), features) for features in (generated, real)]
    others = {
        "Frechet distance with its error, from moments": lambda: measure_frechet_distance(*seen),
        "kernel distance with its error": lambda: kernel_distance(generated, real),
        "precision, recall, density, coverage": lambda: neighbourhoods(real, generated),
    }
    ours_others = {name: round(cpu_seconds(run), 2) for name, run in others.items()}
    memory = {name: peak_bytes(run) for name, run in {"moments and Frechet distance": ours, **others}.items()}
    rows = [[name, f"{medians[name]:.2f}", f"{values[name]:.6f}"] for name in seconds]
    print(turns.table(["moments and Frechet distance", "CPU seconds", "value"], rows))
    print(f"ratio {ratio:.3f}, relative difference {abs(values['ours'] / values['torchmetrics'] - 1):.1e}")
    print(turns.table(["ours", "CPU seconds", "peak MiB"], [
        [name, ours_others.get(name, round(medians["ours"], 2)), round(peak / 2**20)] for name, peak in memory.items()
    ]))  # fmt: skip
    if not options.no_save:
        sizes = {"n": options.n, "features": options.features, "batch": options.batch, "rounds": options.rounds}
        about = {**turns.environment(["torchmetrics"]), "threads": torch.get_num_threads()}
        turns.save("metrics", {
            "about": about, **sizes, "cpu_seconds": seconds, "ratio": ratio, "values": values,
            "other_cpu_seconds": ours_others, "peak_bytes": memory,
            "features_bytes": real.nbytes + generated.nbytes,
        })  # fmt: skip


if __name__ == "__main__":
    main()
