"""What a sampler costs beside its network: our loop against that of diffusers, for the same method and steps.

    python benchmarks/sampler_overhead.py [--repeats 30] [--out overhead.json]

The network gives back its input, so what is timed is the sampler, the conversion of the prediction and the loop. They
take turns, and the median ratio of their times is printed; below 1 we are faster. Our numbers are of a grid walked
before, as in all batches but the first; `first` is the time of a first walk, where the coefficients are worked out.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import nn

from undiffuse.denoiser import Denoiser
from undiffuse.noise import NoiseSource
from undiffuse.samplers import grid, named, sample
from undiffuse.schedule import Linear

SHAPE, STEPS = (3, 32, 32), 20
METHODS = {
    "ddim": ("DDIMScheduler", {}),
    "euler:variable=ratio": ("EulerDiscreteScheduler", {}),
    "heun:variable=ratio": ("HeunDiscreteScheduler", {}),
    "dpm++:order=2": ("DPMSolverMultistepScheduler", {}),
    "dpm++:order=3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc:order=2": ("UniPCMultistepScheduler", {}),
    "deis:variable=lambda,order=2": ("DEISMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
}


class Echo(nn.Module):
    """A network that costs nothing: it predicts its input."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return x


def ours(name: str, batch: int) -> Callable[[], None]:
    """A run of our sampler, from noise to data."""
    denoiser, sampler = Denoiser(Echo(), Linear(), "noise"), named(name)
    times = grid.named("trailing", denoiser.schedule, STEPS, denoiser.t_min, 1.0)
    x = torch.randn(batch, *SHAPE)
    return lambda: (sample(denoiser, sampler, x, times), None)[1]


def theirs(name: str, arguments: dict[str, object], batch: int) -> Callable[[], None]:
    """A run of their scheduler over as many evaluations."""
    scheduler = getattr(diffusers, name)(beta_schedule="linear", timestep_spacing="trailing", **arguments)
    x = torch.randn(batch, *SHAPE)

    def run() -> None:
        scheduler.set_timesteps(STEPS)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(scheduler.scale_model_input(y, t), t, y, return_dict=False)[0]

    return run


def seconds(run: Callable[[], None]) -> float:
    """One run, timed."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    print(f"{STEPS} steps of {SHAPE}, one thread, microseconds a step")
    for batch in (1, 64):
        for name, (scheduler, arguments) in METHODS.items():
            mine, peer = ours(name, batch), theirs(scheduler, arguments, batch)
            first = seconds(mine)
            seconds(peer)
            pairs = [(seconds(mine), seconds(peer)) for _ in range(given.repeats)]
            row = {
                "sampler": name, "peer": scheduler, "batch": batch,
                "ratio": statistics.median(a / b for a, b in pairs),
                "ours_us": statistics.median(a for a, _ in pairs) / STEPS * 1e6,
                "theirs_us": statistics.median(b for _, b in pairs) / STEPS * 1e6,
                "first_us": first / STEPS * 1e6,
            }  # fmt: skip
            rows.append(row)
            print(
                f"batch {batch:<3} {name:<30} ratio {row['ratio']:.2f}  ours {row['ours_us']:7.0f}  "
                f"theirs {row['theirs_us']:7.0f}  first {row['first_us']:7.0f}"
            )
        source = NoiseSource(range(batch), SHAPE)
        noise = statistics.median(seconds(lambda source=source: (source.normal("step", 1), None)[1]) for _ in range(9))
        print(f"batch {batch:<3} noise of one step, measured apart: {noise * 1e6:.0f} us")
        rows.append({"sampler": "noise", "batch": batch, "ours_us": noise * 1e6})
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
