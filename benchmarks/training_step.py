"""A training step beside the peers': images a second in each one's own loop, and whether the gradients are the same.

    python benchmarks/training_step.py [--batch 64] [--rounds 5] [--steps 3] [--peers diffusers,lucidrains]

- diffusers: `UNet2DModel` (32x32, 1.7 M parameters, channels 32/64/64, attention in the two lower levels) in the loop
  of their example train_unconditional.py: accelerate, AdamW, a cosine schedule, clipping, EMAModel, a DataLoader. Ours
  has the same weights, read from a folder they saved; the gradients of the same loss at the same noise are compared.
- lucidrains: `Unet(dim=32, dim_mults=(1, 2, 4))` and `GaussianDiffusion` in the loop of their `Trainer`: Adam,
  clipping, ema-pytorch; in float32 and with its amp in bf16. Ours is our U-Net of the same widths, with as many
  parameters and 0.89 times their FLOPs; it has no linear attention at the upper levels, which theirs has.
- smalldiffusion: `Unet(ch=64, ch_mult=(1, 1, 2), attn_resolutions=(16,))` in their `training_loop`, which has neither
  clipping nor an average of the weights, in float32 and with an Accelerator of bf16. Ours is our U-Net of the same
  plan, with as many parameters and FLOPs, and has both.

Ratios are to the faster of a peer's precisions. It stops where gradients differ from those of diffusers by more than
rounding. All do the whole of their step: batch from a data set in memory, noise, forward, backward, clipping,
optimizer, average.
Needs diffusers and accelerate, denoising-diffusion-pytorch (einops, ema-pytorch), smalldiffusion; torchvision and
pytorch-fid, which these import and do not use here, are stubbed. A peer that is not installed is left out and said.
Writes benchmarks/results/training_step.json.
"""

import argparse
import copy
import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import turns
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import undiffuse as ud
from undiffuse import acceleration
from undiffuse.codecs import Pixels
from undiffuse.data import Augment, Dataset
from undiffuse.data.feed import Feed
from undiffuse.denoiser import Denoiser
from undiffuse.formats.diffusers import unet as theirs_as_ours
from undiffuse.formats.diffusers.renaming import on_paper, to_ours
from undiffuse.networks import UNet
from undiffuse.objective.base import Draws
from undiffuse.training import TrainState
from undiffuse.training.loop import train

SHAPE, SAMPLES = (3, 32, 32), 4096
UNET2D = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
# as many parameters as the peer has
OF_LUCIDRAINS: dict[str, Any] = {
    "width": 32, "multipliers": (1, 2, 4), "blocks": 1, "attention": (False, False, True), "embedding": 32,
}  # fmt: skip
OF_SMALLDIFFUSION: dict[str, Any] = {
    "width": 64, "multipliers": (1, 1, 2), "blocks": 2, "attention": (False, True, False), "middle_attention": True,
    "head_width": 64, "modulation": "add", "dropout": 0.1,
}  # fmt: skip
Step = Callable[[], object]


def pictures() -> Tensor:
    return torch.randint(0, 256, (SAMPLES, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- ours --------------------------------------------------------------------------------------------------------------


def ours(denoiser: Denoiser, precision: str, batch: int, compile: bool = False) -> Step:
    """One step of our loop, whatever else `undiffuse train` does around it left out."""
    denoiser = copy.deepcopy(denoiser).requires_grad_(True)
    device = acceleration.default_device()
    settings = acceleration.chosen(precision, compile, device)
    denoiser.precision = torch.bfloat16 if settings["precision"] == "bfloat16" else None
    state = TrainState(denoiser.to(device), ud.Objective(weight="simple"), 1e-4, 1e-6)
    acceleration.accelerate(denoiser.network, settings, device)
    state.total = 10**6
    feed = Feed(Dataset("noise", pictures()), Pixels().encode, Augment([]), batch, 0, device)
    loop = train(state, feed.batch, learning_rate=1e-4, warmup=50, clip=1.0, ema_width=0.1)
    return lambda: next(loop)


# -- diffusers ---------------------------------------------------------------------------------------------------------


def endless(loader: Any) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def of_diffusers(network: Any, mixed_precision: str, batch: int) -> Step:
    """A step of examples/unconditional_image_generation/train_unconditional.py."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    network = copy.deepcopy(network).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    average = EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_cls=UNet2DModel,
        model_config=network.config,
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)
    data = torch.utils.data.TensorDataset(pictures().float() / 127.5 - 1)
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True)
    network, optimizer, loader, rate = accelerator.prepare(network, optimizer, loader, rate)
    batches = endless(loader)

    def step() -> None:
        (clean,) = next(batches)
        noise = torch.randn(clean.shape)
        times = torch.randint(0, 1000, (len(clean),)).long()
        noisy = scheduler.add_noise(clean, noise, times)
        with accelerator.accumulate(network):
            loss = F.mse_loss(network(noisy, times).sample.float(), noise)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(network.parameters())
        loss.detach().item()

    return step


def gradients_beside_diffusers(network: Any, denoiser: Denoiser, batch: int = 16) -> dict[str, float]:
    """The relative difference (float32) and the cosine (bfloat16) of our gradient to theirs, for one loss."""
    from diffusers import DDPMScheduler

    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(batch, *SHAPE, generator=generator) for _ in range(2))
    times = torch.randint(0, 1000, (batch,), generator=generator)
    network = copy.deepcopy(network).train()
    noisy = DDPMScheduler(num_train_timesteps=1000).add_noise(clean, noise, times)
    F.mse_loss(network(noisy, times).sample, noise).backward()
    model = theirs_as_ours.read("UNet2DModel", network.config)
    names = theirs_as_ours.names(model.network)
    own = on_paper(model.network).state_dict()
    theirs = {theirs_as_ours.renewed(name): p.grad for name, p in network.named_parameters()}
    expected = to_ours(theirs, own, names, "diffusers")
    if not network.config.flip_sin_to_cos:
        raise SystemExit("the comparison of gradients is written for flip_sin_to_cos=True")
    draws = Draws((times.double() + 1) / 1000, noise, torch.zeros(batch, dtype=torch.bool))
    found = {}
    for precision in (None, torch.bfloat16):
        denoiser = copy.deepcopy(denoiser).requires_grad_(True).train()
        denoiser.zero_grad()
        denoiser.precision = precision
        ud.Objective(weight="simple")(denoiser, clean, {}, draws).mean().backward()
        gradient = {name: p.grad for name, p in denoiser.network.named_parameters()}
        pair = [gradient[name] for name in expected], list(expected.values())
        if precision is None:
            found["float32 difference"] = turns.difference(*pair)
        else:
            found["bfloat16 cosine"] = turns.cosine(*pair)
    return found


def network_of_diffusers() -> tuple[Any, Denoiser, dict[str, Any]]:
    """Theirs, ours with the same weights, and how far the gradients are apart. Raises: SystemExit beyond rounding."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(**UNET2D)
    with tempfile.TemporaryDirectory() as folder:
        DDPMPipeline(network, DDPMScheduler(num_train_timesteps=1000, clip_sample=False)).save_pretrained(folder)
        denoiser = ud.load(folder, device="cpu").denoiser
    found = gradients_beside_diffusers(network, denoiser)
    if found["float32 difference"] > 1e-4 or found["bfloat16 cosine"] < 0.999:
        raise SystemExit(f"the gradients are not those of diffusers: {found}")
    return network, denoiser, found


def beside_diffusers(batch: int) -> tuple[dict[str, Step], dict[str, Any]]:
    network, denoiser, found = network_of_diffusers()
    contenders = {
        "diffusers, float32": of_diffusers(network, "no", batch),
        "diffusers, bf16": of_diffusers(network, "bf16", batch),
        "ours, float32": ours(denoiser, "float32", batch),
        "ours, auto": ours(denoiser, "auto", batch),
    }
    gflop = forward_gflop(denoiser.network, torch.zeros(1, *SHAPE), torch.zeros(1))
    return contenders, {"parameters": [count(network), count(denoiser)], "forward GFLOP": [gflop, gflop], **found}


# -- the others --------------------------------------------------------------------------------------------------------


def forward_gflop(network: nn.Module, *inputs: Tensor) -> float:
    """Of one picture, a multiply-add being two."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network.eval()(*inputs)
    network.train()
    return round(counted.get_total_flops() / 1e9, 3)


def of_ours(arguments: dict[str, Any], batch: int) -> tuple[dict[str, Step], int, float]:
    """Our steps with a U-Net of these arguments, its parameters and GFLOP."""
    torch.manual_seed(0)
    network = UNet(3, **arguments)
    denoiser = Denoiser(network, ud.schedule.named("cosine"), "v")
    steps = {f"ours, {precision}": ours(denoiser, precision, batch) for precision in ("float32", "auto")}
    return steps, count(network), forward_gflop(network, torch.zeros(1, *SHAPE), torch.zeros(1))


def of_lucidrains(mixed_precision: str, batch: int) -> tuple[Step, nn.Module]:
    """A step of `Trainer.train`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    diffusion = GaussianDiffusion(Unet(dim=32, dim_mults=(1, 2, 4)), image_size=32)
    network = diffusion.model
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    data = torch.utils.data.DataLoader(pictures().float() / 255, batch_size=batch, shuffle=True)
    diffusion, optimizer, data = accelerator.prepare(diffusion, optimizer, data)
    batches = endless(data)

    def step() -> None:
        diffusion.train()
        with accelerator.autocast():
            loss = diffusion(next(batches))
        loss.item()
        accelerator.backward(loss)
        accelerator.wait_for_everyone()
        accelerator.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.wait_for_everyone()
        average.update()

    return step, network


def beside_lucidrains(batch: int) -> tuple[dict[str, Step], dict[str, Any]]:
    turns.stub("torchvision", "torchvision.transforms", "pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception")
    wide, network = of_lucidrains("no", batch)
    gflop = forward_gflop(network, torch.zeros(1, *SHAPE), torch.zeros(1))
    mine, size, own_gflop = of_ours(OF_LUCIDRAINS, batch)
    contenders = {"lucidrains, float32": wide, "lucidrains, bf16": of_lucidrains("bf16", batch)[0], **mine}
    return contenders, {"parameters": [count(network), size], "forward GFLOP": [gflop, own_gflop]}


def of_smalldiffusion(mixed_precision: str, batch: int) -> tuple[Step, nn.Module]:
    """A step of `training_loop`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from smalldiffusion import ScheduleDDPM, Unet, training_loop

    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Unet(32, 3, 3, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(16,))
    loader = torch.utils.data.DataLoader(pictures().float() / 127.5 - 1, batch_size=batch, shuffle=True)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    loop = training_loop(loader, model, ScheduleDDPM(), accelerator, epochs=10**6, lr=1e-4)
    next(loop)  # it yields between the loss and the step, so one turn is the rest of a step and the start of the next
    return lambda: next(loop), model


def beside_smalldiffusion(batch: int) -> tuple[dict[str, Step], dict[str, Any]]:
    turns.stub("torchvision", "torchvision.transforms")
    wide, network = of_smalldiffusion("no", batch)
    gflop = forward_gflop(network, torch.zeros(1, *SHAPE), torch.ones(1))
    mine, size, own_gflop = of_ours(OF_SMALLDIFFUSION, batch)
    contenders = {"smalldiffusion, float32": wide, "smalldiffusion, bf16": of_smalldiffusion("bf16", batch)[0], **mine}
    return contenders, {"parameters": [count(network), size], "forward GFLOP": [gflop, own_gflop]}


PEERS = {"diffusers": beside_diffusers, "lucidrains": beside_lucidrains, "smalldiffusion": beside_smalldiffusion}
PACKAGES = {
    "diffusers": ("diffusers", "accelerate"),
    "lucidrains": ("denoising_diffusion_pytorch", "accelerate", "einops", "ema_pytorch"),
    "smalldiffusion": ("smalldiffusion", "accelerate", "einops"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each contender in a round")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--no-save", action="store_true", help="print alone")
    parser.add_argument(
        "--check", action="store_true", help="compare gradients with those of diffusers, and time nothing"
    )
    options = parser.parse_args()
    if options.check:
        print(network_of_diffusers()[2])
        return
    found: dict[str, Any] = {**turns.environment({p for names in PACKAGES.values() for p in names})}
    found |= {"batch": options.batch, "peers": {}}
    rows = []
    for peer in options.peers:
        missing = [name for name in PACKAGES[peer] if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{peer} is left out: {', '.join(missing)} not installed")
            continue
        contenders, facts = PEERS[peer](options.batch)

        def several(step: Step) -> Step:
            return lambda: [step() for _ in range(options.steps)]

        seconds = turns.take_turns({name: several(step) for name, step in contenders.items()}, options.rounds)
        rates = {name: turns.rate(taken, options.batch * options.steps) for name, taken in seconds.items()}
        best = max(value for name, value in rates.items() if not name.startswith("ours"))
        found["peers"][peer] = {**facts, "images_per_second": {n: round(r, 1) for n, r in rates.items()}}
        for name, value in rates.items():
            rows.append((peer, name, f"{value:.1f}", f"{value / best:.2f}"))
        print(peer, facts)
    print(turns.table(("beside", "who", "images/s", "to the peer's best"), rows))
    if not options.no_save:
        print(turns.save("training_step", found))


if __name__ == "__main__":
    main()
