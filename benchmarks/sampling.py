"""Sampling beside diffusers: the same network, weights, solver, times and noise; seconds, and whether samples agree.

    python benchmarks/sampling.py [--batch 64,1] [--steps 20] [--rounds 3] [--compile]

The network is that of training_step.py. Theirs is called as their pipelines do, network, then scheduler, step by step,
in float32 and under bfloat16 autocast; ours is read from a folder they saved and walks the grid that goes with their
scheduler, in float32 and in what `precision: auto` comes to on this device. Our samples are compared with theirs in
float32: the exact mode to rounding, the fast one as far as bfloat16 goes. --compile adds both networks under
torch.compile, and the seconds of their first call. Writes benchmarks/results/sampling.json.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import turns
from torch import Tensor
from training_step import SHAPE, UNET2D

import undiffuse as ud
from undiffuse import acceleration, samplers

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "timestep_spacing": "trailing"},
    "DPMSolverMultistepScheduler": {},
}


@torch.no_grad()
def theirs(network: Any, scheduler: Any, x: Tensor, steps: int, autocast: bool) -> Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            out = network(x, t).sample
        x = scheduler.step(out.float(), t, x).prev_sample
    return x


def ours(model: ud.Pipeline, x: Tensor, steps: int) -> Tensor:
    return samplers.sample(model.denoiser, model.sampler(), x, model.times(steps))


def contenders(kind: str, steps: int, compile: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Everybody's way from noise to samples."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**UNET2D).eval().to(acceleration.default_device())
    scheduler = getattr(diffusers, kind)(**SCHEDULERS[kind])
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
        model = ud.load(folder)
    fast = acceleration.chosen("auto", False, model.device)["precision"]
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for compiled in (False, True) if compile else (False,):
        how = ", compiled" if compiled else ""
        network_of_theirs, model = copy.deepcopy(network), copy.deepcopy(model)
        if compiled:
            network_of_theirs.compile()
            model.denoiser.network.compile()
        for autocast, name in ((False, "float32"), (True, "bf16")):
            found[f"diffusers, {name}{how}"] = lambda x, n=network_of_theirs, a=autocast: theirs(
                n, scheduler, x, steps, a
            )
        for precision in dict.fromkeys(("float32", fast)):
            mine = copy.copy(model)
            mine.denoiser = copy.copy(model.denoiser)
            mine.denoiser.precision = torch.bfloat16 if precision == "bfloat16" else None
            found[f"ours, {precision}{how}"] = lambda x, m=mine: ours(m, x, steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[64, 1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--schedulers", type=lambda text: text.split(","), default=list(SCHEDULERS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-save", action="store_true", help="print alone")
    options = parser.parse_args()
    results: dict[str, Any] = {**turns.environment(("diffusers",)), "steps": options.steps, "cells": []}
    rows = []
    for kind in options.schedulers:
        for batch in options.batch:
            found = contenders(kind, options.steps, options.compile)
            x = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(2)).to(acceleration.default_device())
            samples, first = {}, {}
            for name, run in found.items():
                began = time.perf_counter()
                samples[name] = run(x)
                first[name] = time.perf_counter() - began
            seconds = turns.take_turns({name: partial(run, x) for name, run in found.items()}, options.rounds)
            rates = {name: turns.rate(taken, batch) for name, taken in seconds.items()}
            best = max(value for name, value in rates.items() if name.startswith("diffusers"))
            for name, value in rates.items():
                apart = turns.difference([samples[name]], [samples["diffusers, float32"]])
                rows.append(
                    (kind, batch, name, f"{value:.2f}", f"{value / best:.2f}", f"{first[name]:.1f}", f"{apart:.1e}")
                )
                cell = {"scheduler": kind, "batch": batch, "who": name, "images_per_second": round(value, 3)}
                results["cells"].append({**cell, "first_call_seconds": round(first[name], 2), "difference": apart})
    columns = ("solver", "batch", "who", "images/s", "to their best", "first call, s", "from their float32")
    print(turns.table(columns, rows))
    if not options.no_save:
        print(turns.save("sampling", results))


if __name__ == "__main__":
    main()
