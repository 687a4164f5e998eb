"""Where the time of a training step goes: shares by kind of work, from torch's profiler.

    python benchmarks/profile_step.py [--model unet2d,mnist] [--batch 64] [--steps 5]

unet2d is the network that training_step.py compares with diffusers; mnist the network of the recipe `mnist`. Forward
and backward together. What is neither a convolution, attention, a normalisation nor a matrix product is elementwise.
"""

import argparse
import time
from collections import defaultdict
from typing import Any

import torch
import turns
from torch.profiler import ProfilerActivity, profile, record_function
from training_step import OF_LUCIDRAINS, SHAPE, UNET2D, pictures

import undiffuse as ud
from undiffuse import acceleration, recipes
from undiffuse.codecs import Pixels
from undiffuse.data import Augment, Dataset
from undiffuse.data.feed import Feed
from undiffuse.denoiser import Denoiser
from undiffuse.formats.diffusers import unet as theirs_as_ours
from undiffuse.networks import UNet
from undiffuse.training import TrainState, ema, loop

KINDS = (  # the first that a name contains
    ("convolution", ("convolution", "conv2d")),
    ("attention", ("attention", "Attention")),
    ("normalisation", ("_Normalised", "group_norm")),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm")),
)


def network_of(model: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    if model == "unet2d":
        section = theirs_as_ours.read("UNet2DModel", UNET2D).network
        return UNet(**{k: v for k, v in section.items() if k != "name"}), SHAPE
    if model == "lucidrains":
        return UNet(3, **OF_LUCIDRAINS), SHAPE
    section = recipes.named(model).network.model_dump()
    section.pop("name")
    return UNet(1, **section), (1, 28, 28)


def named(part: str, call: Any) -> Any:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with record_function(f"part {part}"):
            return call(*arguments, **options)

    return wrapped


def shares(model: str, batch: int, steps: int) -> tuple[dict[str, float], float]:
    """Seconds of a step by kind of work, and images a second without the profiler."""
    network, shape = network_of(model)
    device = acceleration.default_device()
    precision = acceleration.chosen("auto", False, device)["precision"]
    denoiser = Denoiser(
        network, ud.schedule.named("cosine"), "v", precision=torch.bfloat16 if precision == "bfloat16" else None
    ).to(device)
    state = TrainState(denoiser, ud.Objective(weight="simple"), 1e-4, 0.01)
    state.total = 10**6
    samples = pictures()[:, : shape[0], : shape[1], : shape[2]].contiguous()
    feed = Feed(Dataset("noise", samples), Pixels().encode, Augment([]), batch, 0, device)
    state.objective.draw = named("noise", state.objective.draw)
    state.optimizer.step = named("optimizer", state.optimizer.step)
    ema.update = named("average (EMA)", ema.update)
    torch.nn.utils.clip_grad_norm_ = named("clipping", torch.nn.utils.clip_grad_norm_)
    steps_of = loop.train(state, named("data", feed.batch), learning_rate=1e-4, warmup=50, clip=1.0, ema_width=0.1)
    for _ in range(3):
        next(steps_of)
    began = time.perf_counter()
    for _ in range(steps):
        next(steps_of)
    rate = steps * batch / (time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            next(steps_of)
    found: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        above = [event]  # and all that it runs inside
        while above[-1].cpu_parent is not None:
            above.append(above[-1].cpu_parent)
        outer = [parent.name for parent in reversed(above)]
        part = next((name.removeprefix("part ") for name in outer if name.startswith("part ")), None)
        kinds = (kind for name in outer for kind, words in KINDS if any(word in name for word in words))
        kind = part or next(kinds, None)
        found[kind or "elementwise, copies, calls"] += event.self_cpu_time_total / 1e6 / steps
    return dict(found), rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=lambda text: text.split(","), default=["unet2d", "mnist"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    print(turns.environment(()))
    for model in options.model:
        found, rate = shares(model, options.batch, options.steps)
        whole = sum(found.values())
        rows = [
            (kind, f"{1e3 * seconds:.1f}", f"{100 * seconds / whole:.1f} %")
            for kind, seconds in sorted(found.items(), key=lambda pair: -pair[1])
        ]
        print(f"\n{model}, batch {options.batch}: {rate:.1f} images/s")
        print(turns.table(("work", "ms a step", "share"), rows))


if __name__ == "__main__":
    main()
