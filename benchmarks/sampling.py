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
def theirs(network: Any, scheduler: Any, autocast: bool, steps: int, x: Tensor) -> Tensor:
    """As their pipelines do: the samples in the network's own type, and memory layout."""
    weight = network.conv_in.weight
    x = x.to(weight.dtype)
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        x = x.contiguous(memory_format=torch.channels_last)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            out = network(x, t).sample
        x = scheduler.step(out.to(x.dtype), t, x).prev_sample
    return x.float()


def ours(model: ud.Pipeline, precision: str, steps: int, x: Tensor) -> Tensor:
    model.denoiser.precision = torch.bfloat16 if precision == "bfloat16" else None
    return samplers.sample(model.denoiser, model.sampler(), x, model.times(steps))


def contenders(kind: str, steps: int, compile: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Everybody's way from noise to samples."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**UNET2D).eval().to(acceleration.default_device())
    scheduler = getattr(diffusers, kind)(**SCHEDULERS[kind])
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
        model, compiled = ud.load(folder), ud.load(folder)
    layouts = {"": network, ", channels-last": copy.deepcopy(network).to(memory_format=torch.channels_last)}
    for layout, one in layouts.items():
        found[f"diffusers, float32{layout}"] = partial(theirs, one, scheduler, False, steps)
        found[f"diffusers, bf16 autocast{layout}"] = partial(theirs, one, scheduler, True, steps)
    half = copy.deepcopy(network).to(torch.bfloat16)
    found["diffusers, bf16 weights"] = partial(theirs, half, scheduler, False, steps)
    precisions = dict.fromkeys(("float32", acceleration.chosen("auto", False, model.device)["precision"]))
    for precision in precisions:
        found[f"ours, {precision}"] = partial(ours, model, precision, steps)
    if compile:
        whole = copy.deepcopy(network)
        whole.compile()
        found["diffusers, float32, compiled"] = partial(theirs, whole, scheduler, False, steps)
        compiled.compile()
        for precision in precisions:
            found[f"ours, {precision}, compiled"] = partial(ours, compiled, precision, steps)
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
            torch._dynamo.reset()  # or the next contenders would find the programs of these
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
                if name.startswith("ours") and apart > (1e-4 if "float32" in name else 2e-2):
                    raise SystemExit(f"the samples of {name!r} are {apart:.1e} from those of diffusers in float32")
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
