"""Training and sampling on a GPU: images a second, model-FLOPs utilisation, memory and warm-up, beside diffusers.

    python benchmarks/gpu.py                                    all of it, into benchmarks/results/gpu.json
    python benchmarks/gpu.py --cases dit-b/2 --batch 128        one network, another batch
    python benchmarks/gpu.py --smoke --no-save                  toy sizes, anywhere, in a minute

Two networks at their published sizes, but without a learned variance, which not all loops train: DiT-B/2 on 4x32x32
latents and the ADM-64 U-Net on 64x64 pictures, both told a class. Theirs, `DiTTransformer2DModel` and `UNet2DModel`, is
opened from a folder that ours was exported to, so both have the same weights; loss and gradients are compared first.

- ours trains in `undiffuse.training.loop.train`: bf16 autocast, fused AdamW, clipping, foreach averaging, nothing that
  waits for the device. Theirs trains in the loop of their example train_unconditional.py as accelerate carries it out
  on one device: bf16 autocast, AdamW, clipping, EMAModel (its foreach form), and the loss read at each step. Both are
  timed without and with `network.compile()`, on data that lies on the device.
- ours samples in 20 steps of the default sampler by `Pipeline.sample`, without and with `Pipeline.compile` (CUDA
  graphs). Theirs in 20 of UniPC, without and with `torch.compile(mode="reduce-overhead")`, its weights in bf16.

Utilisation is FLOPs of the network (a multiply-add is two; training is three forward passes) over what the card can do
densely in bf16. `warm-up` is everything up to the first step at full speed, compilation above all.
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import turns
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import undiffuse
from undiffuse import acceleration, pipeline
from undiffuse.denoiser import Denoiser
from undiffuse.formats import diffusers as folders
from undiffuse.formats.diffusers import dit, unet
from undiffuse.formats.diffusers.renaming import on_paper, to_ours
from undiffuse.networks.published import PUBLISHED
from undiffuse.objective import Draws, Objective
from undiffuse.training import TrainState
from undiffuse.training.loop import Batch, train

STEPS = 20  # of sampling
# dense bf16 with float32 sums, in TFLOP/s, by a part of the card's name: NVIDIA's data sheets, whose numbers "with
# sparsity" are twice as large
PEAKS = {
    "A100": 312.0, "H100": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200": 989.0, "H200 NVL": 835.0,
    "B200": 2250.0, "L4": 121.0, "L40": 181.0, "L40S": 362.0, "RTX 4090": 165.2,
}  # fmt: skip
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A network in both libraries. arguments: of ours; shape: of a sample; batch: in training and in sampling."""

    name: str
    network: str
    arguments: dict[str, Any]
    shape: tuple[int, int, int]
    batch: int
    classes: int = 1000
    toy: dict[str, Any] = field(default_factory=dict)

    @property
    def null(self) -> bool:
        """Whether the table of classes has a row for none; in their DiT it has."""
        return self.network == "dit"

    def spec(self) -> dict[str, Any]:
        """The recipe of our half, as a run folder holds it: noise prediction on the table of DDPM."""
        names = [str(number) for number in range(self.classes)]
        return {
            "name": self.name, "codec": "identity" if self.shape[0] == 4 else "pixels",
            "network": {"name": self.network, **self.arguments},
            "condition": {"label": {"name": "label", "optional": self.null}},
            "schedule": {"name": "linear", "steps": 1000}, "prediction": {"name": "noise", "label": "step"},
            "range": {"t_min": None, "t_max": 1.0}, "sampling": {**pipeline.DEFAULTS, "steps": STEPS},
            "resolved": {
                "shape": list(self.shape), "conditions": {"label": {"classes": names}}, "data_std": 1.0,
                "precision": "bfloat16", "undiffuse": undiffuse.__version__,
            },
        }  # fmt: skip

    def small(self) -> "Case":
        """The same at a toy size."""
        channels, size = self.shape[0], 8
        return Case(self.name, self.network, {**self.arguments, **self.toy}, (channels, size, size), 4, 10)


def _published(name: str, **changes: Any) -> dict[str, Any]:
    arguments = {**PUBLISHED[name].arguments, **changes}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}


CASES = [
    # frequency_shift: as theirs has it
    Case("dit-b/2", "dit", _published("dit-b/2", learned_variance=False, frequency_shift=1), (4, 32, 32), 256,
         toy={"width": 32, "depth": 2, "heads": 2, "size": 8}),
    Case("adm-64", "unet", _published("adm-64", learned_variance=False), (3, 64, 64), 32,
         toy={"width": 32, "multipliers": [1, 2], "attention": [False, True], "blocks": 1, "head_width": 32}),
]  # fmt: skip


# -- the device --------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured_peak(device: torch.device, size: int) -> float:
    """TFLOP/s of one large product of matrices, in bf16 on CUDA: what is left for any network to reach."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - began) / 5)
    return 2 * size**3 / best / 1e12


def peak(device: torch.device, smoke: bool) -> dict[str, Any]:
    """What utilisation is measured against, and where it comes from."""
    measured = measured_peak(device, 256 if smoke else 8192)
    name = acceleration.describe(device)
    known = max((part for part in PEAKS if re.search(rf"\b{part}\b", name)), key=len, default=None)
    source = f"{known} in the data sheet" if known else f"a matrix product, measured ({name} is not in the table)"
    found = {"teraflops": PEAKS[known] if known else measured, "source": source, "matrix_product": measured}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


def forward_flops(case: Case) -> int:
    """FLOPs of one picture's forward pass: products of matrices and convolutions, counted on the meta device."""
    network = on_paper(case.spec()["network"])
    x, told = torch.empty(1, *case.shape, device="meta"), torch.empty(1, device="meta")
    vector = torch.empty(1, network.embedding_width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, told, vector=vector)
    return counter.get_total_flops()


@dataclass
class Timed:
    """A contender's numbers; failed: why it has none."""

    images_per_second: float = 0.0
    warmup_seconds: float = 0.0
    peak_gigabytes: float | None = None
    failed: str | None = None


def timed(make: Callable[[], Step], batch: int, count: int, rounds: int, device: torch.device) -> Timed:
    """`batch` images a step; the median of several rounds of `count` steps, each waited for at its end alone."""
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step = make()
        wait(device)
        began = time.perf_counter()
        for _ in range(5):  # cuDNN tries its algorithms, a compiler compiles, a graph is recorded
            step()
        wait(device)
        first = time.perf_counter() - began
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(count):
                step()
            wait(device)
            seconds.append((time.perf_counter() - began) / count)
    except Exception as reason:  # a contender that cannot run is a result, and the others are still to come
        return Timed(failed=f"{type(reason).__name__}: {' '.join(str(reason).split()):.120}")
    rate = turns.rate(seconds, batch)
    gigabytes = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return Timed(rate, max(0.0, first - 5 * batch / rate), gigabytes)


# -- both networks -----------------------------------------------------------------------------------------------------


def made(case: Case, device: torch.device) -> tuple[pipeline.Pipeline, nn.Module | None]:
    """Our pipeline, and their network of the same weights (None where diffusers is not installed).

    Weights that are 0 at the start are random here, or nothing would depend on them.
    """
    torch.manual_seed(0)
    spec = case.spec()
    ours = pipeline.assemble(spec)
    for parameter in ours.denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    theirs = None
    if importlib.util.find_spec("diffusers"):
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        kind, place = ("DiTTransformer2DModel", "transformer") if case.network == "dit" else ("UNet2DModel", "unet")
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folders.write(Path(folder) / "model", spec, ours.denoiser.state_dict())
            theirs = getattr(diffusers, kind).from_pretrained(Path(folder) / "model", subfolder=place).to(device)
    return ours.to(device), theirs


def gradients(case: Case, theirs: nn.Module) -> dict[str, Tensor]:
    """Their gradients under our names. The embedders that their DiT has in every block are one here: it has the sum."""
    module = dit if case.network == "dit" else unet
    found: dict[str, Tensor] = {}
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            continue
        if case.network == "dit" and ".norm1.emb." in name:
            name = f"{dit.EMBEDDER}.{name.partition('.norm1.emb.')[2]}"
        found[name] = found.get(name, 0) + parameter.grad.float()
    network = on_paper(case.spec()["network"])
    labels = torch.empty(case.classes + case.null, network.embedding_width, device="meta")
    names = module.names(case.spec()["network"])
    return to_ours(
        found,
        network.state_dict() | {"label": labels},
        lambda n: [module.LABEL] if n == "label" else names(n),
        "theirs",
    )


def agreement(case: Case, ours: Denoiser, theirs: nn.Module, device: torch.device) -> dict[str, Any]:
    """Loss and gradients of both, of the same samples, noise, times and classes, in float32 and in bf16."""
    from diffusers import DDPMScheduler

    batch = min(8, case.batch)
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(batch, *case.shape, generator=generator).to(device) for _ in range(2))
    index = torch.randint(0, 1000, (batch,), generator=generator)
    labels = torch.randint(0, case.classes, (batch,), generator=generator)
    noisy = DDPMScheduler(num_train_timesteps=1000).add_noise(clean, noise, index.to(device))
    draws = Draws((index.double() + 1) / 1000, noise, torch.zeros(batch, dtype=torch.bool, device=device))
    found: dict[str, Any] = {}
    theirs.eval()  # in training their DiT drops classes by draws of its own
    for name, dtype in (("float32", None), ("bf16", torch.bfloat16)):
        ours.zero_grad()
        theirs.zero_grad()
        ours.precision = dtype
        loss = Objective("simple", "table")(ours, clean, {"label": labels}, draws).mean()
        loss.backward()
        with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
            out = theirs(noisy, index.to(device), class_labels=labels.to(device)).sample
        other = F.mse_loss(out.float(), noise)
        other.backward()
        expected = gradients(case, theirs)
        own = {key: parameter.grad for key, parameter in ours.network.named_parameters()}
        own["label"] = ours.conditioner.part("label").embedding.weight.grad
        found[f"{name} cosine of gradients"] = turns.cosine([own[key] for key in expected], expected.values())
        found[f"{name} losses"] = [float(loss.detach()), float(other.detach())]
    ours.zero_grad()
    theirs.zero_grad()
    worst = min(value for key, value in found.items() if "cosine" in key)
    apart = max(abs(a / b - 1) for key, (a, b) in ((k, v) for k, v in found.items() if "losses" in k))
    if not (worst > 0.999 and apart < 0.01):
        raise SystemExit(f"{case.name}: the two networks differ, so timing them says nothing: {found}")
    return found


def uncompiled(network: nn.Module) -> nn.Module:
    """A network as it was before `network.compile()`."""
    network._compiled_call_impl = None
    return network


def data(case: Case, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Eight batches on the device, pictures as bytes and latents as floats, and their classes."""
    generator = torch.Generator().manual_seed(2)
    many = 8 * batch
    labels = torch.randint(0, case.classes, (many,), generator=generator)
    if case.shape[0] == 4:
        return torch.randn(many, *case.shape, generator=generator).to(device), labels
    return torch.randint(0, 256, (many, *case.shape), generator=generator, dtype=torch.uint8).to(device), labels


# -- training ----------------------------------------------------------------------------------------------------------


def our_training(case: Case, model: pipeline.Pipeline, batch: int, compiled: bool, device: torch.device) -> Step:
    """A step of our loop: what `undiffuse train` does between two lines of its log."""
    denoiser = model.denoiser.requires_grad_(True).train()
    settings = acceleration.chosen("bfloat16", compiled, device)
    denoiser.precision = torch.bfloat16
    uncompiled(denoiser.network)
    state = TrainState(denoiser, Objective("simple", "table", drop=0.1 if case.null else 0.0), 1e-4, 0.0)
    acceleration.accelerate(denoiser.network, settings, device)
    state.total = 10**6
    samples, labels = data(case, batch, device)

    def batches(step: int) -> Batch:
        first = step % 8 * batch
        rows = slice(first, first + batch)
        seeds = torch.arange(step * batch, (step + 1) * batch)
        return model.codec.encode(samples[rows]), {"label": labels[rows]}, seeds

    loop = train(state, batches, learning_rate=1e-4, warmup=500, clip=1.0, ema_width=0.1)
    return lambda: next(loop)


def their_training(case: Case, network: nn.Module, batch: int, compiled: bool, device: torch.device) -> Step:
    """A step of examples/unconditional_image_generation/train_unconditional.py, as accelerate does it on one device."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    uncompiled(network).train()
    if compiled:
        network.compile()
    average = EMAModel(network.parameters(), use_ema_warmup=True, power=0.75, foreach=True)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)
    samples, labels = data(case, batch, device)
    labels = labels.to(device)
    taken = 0

    def step() -> None:
        nonlocal taken
        first = taken % 8 * batch
        taken += 1
        clean = samples[first : first + batch]
        clean = clean if clean.is_floating_point() else clean.float() / 127.5 - 1
        noise = torch.randn(clean.shape, device=device)
        times = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(clean, noise, times)
        with torch.autocast(device.type, torch.bfloat16):
            out = network(noisy, times, class_labels=labels[first : first + batch]).sample
        loss = F.mse_loss(out.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        loss.detach().item()

    return step


# -- sampling ----------------------------------------------------------------------------------------------------------


def our_sampling(case: Case, model: pipeline.Pipeline, batch: int, compiled: bool) -> Step:
    """A batch of samples, from seeds to pictures on the host."""
    model.denoiser.requires_grad_(False).eval()
    model.denoiser.precision = torch.bfloat16
    uncompiled(model.denoiser.network)
    if compiled:
        model.compile()
    labels = torch.arange(batch) % case.classes
    return lambda: model.sample(batch, label=labels, guidance=1.0, batch_size=batch)


def apart(case: Case, model: pipeline.Pipeline, batch: int) -> dict[str, float]:
    """How far samples are from those of plain calls in bf16, as a share of their root mean square.

    By compiled calls; and, as a yardstick of what rounding comes to in this network, by plain calls in float32.
    """

    def pictures(compiled: bool, precision: torch.dtype | None = torch.bfloat16) -> np.ndarray:
        step = our_sampling(case, model, batch, compiled)
        model.denoiser.precision = precision
        return np.asarray(step(), float)

    plain, wide, fast = pictures(False), pictures(False, None), pictures(True)
    model.denoiser.network = model.denoiser.network.network  # plain again

    def distance(other: np.ndarray) -> float:
        return float(np.sqrt(np.square(other - plain).mean() / np.square(plain).mean()))

    return {"compiled": distance(fast), "float32": distance(wide)}


def their_sampling(case: Case, network: nn.Module, batch: int, compiled: bool, device: torch.device) -> Step:
    """The same with their solver of the same kind: bf16 weights, and pictures on the host at the end."""
    from diffusers import UniPCMultistepScheduler

    network = uncompiled(network).eval().requires_grad_(False).to(torch.bfloat16)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    call = torch.compile(network, mode=mode) if compiled else network
    labels = (torch.arange(batch) % case.classes).to(device)

    def step() -> Tensor:
        scheduler = UniPCMultistepScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(STEPS, device=device)
        x = torch.randn(batch, *case.shape, device=device)
        with torch.no_grad():
            for t in scheduler.timesteps:
                torch.compiler.cudagraph_mark_step_begin()
                out = call(x.bfloat16(), t.expand(batch), class_labels=labels).sample.float()
                x = scheduler.step(out, t, x).prev_sample
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu()

    return step


# -- all of it ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def compiler(smoke: bool) -> Iterator[None]:
    """In a smoke test what would be compiled is traced as ever, and run by torch's own kernels."""
    traced = functools.partial(torch.compile, backend="eager")
    with mock.patch.object(torch, "compile", traced) if smoke else contextlib.nullcontext():
        yield


def measure(case: Case, batch: int, count: int, rounds: int, against: float, device: torch.device) -> dict[str, Any]:
    """One network: agreement, then the rows of training and sampling."""
    flops = forward_flops(case)
    ours, theirs = made(case, device)
    found: dict[str, Any] = {
        "shape": list(case.shape), "batch": batch, "forward_gigaflops": round(flops / 1e9, 3),
        "parameters": sum(p.numel() for p in ours.denoiser.parameters()), "rows": [],
    }  # fmt: skip
    if theirs is not None:
        found["agreement"] = agreement(case, ours.denoiser, theirs, device)
        theirs.to("cpu")
    found["samples apart"] = apart(case, ours, min(8, batch))
    print({name: value for name, value in found.items() if name != "rows"}, flush=True)
    contenders: list[tuple[str, str, bool, Callable[[], Step]]] = []
    for compiled in (False, True):
        contenders += [
            ("training", "ours", compiled, lambda c=compiled: our_training(case, ours, batch, c, device)),
            ("training", "diffusers", compiled, lambda c=compiled: their_training(case, theirs, batch, c, device)),
        ]
    for compiled in (False, True):
        contenders += [
            ("sampling", "ours", compiled, lambda c=compiled: our_sampling(case, ours, batch, c)),
            ("sampling", "diffusers", compiled, lambda c=compiled: their_sampling(case, theirs, batch, c, device)),
        ]
    for what, who, compiled, make in contenders:
        if theirs is None and who == "diffusers":
            continue
        if theirs is not None:  # its weights are no part of what the other needs
            (theirs if who == "ours" else ours.denoiser).to("cpu")
            (ours.denoiser if who == "ours" else theirs).to(device)
        result = timed(make, batch, max(1, count // (STEPS if what == "sampling" else 1)), rounds, device)
        work = flops * (3 if what == "training" else STEPS)
        row = {"what": what, "who": who, "compiled": compiled, **vars(result)}
        row["utilisation"] = result.images_per_second * work / (against * 1e12)
        found["rows"].append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(f"  {what}, {who}{', compiled' if compiled else ''}: {result}", flush=True)
    return found


def rows_of(name: str, found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in found["rows"]:
        start = (name, row["what"], row["who"], "yes" if row["compiled"] else "no")
        if row["failed"]:
            yield (*start, row["failed"], "", "", "")
            continue
        memory = "" if row["peak_gigabytes"] is None else f"{row['peak_gigabytes']:.1f}"
        rate, warm = f"{row['images_per_second']:,.1f}", f"{row['warmup_seconds']:.1f}"
        yield (*start, rate, f"{row['utilisation']:.1%}", memory, warm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--cases", type=lambda text: text.split(","), default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--batch", type=int, help="by default the case's own")
    parser.add_argument(
        "--steps", type=int, default=40, help="of training in a round; a 20th as many batches of samples"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="toy sizes, to see that all of it runs")
    parser.add_argument("--no-save", action="store_true", help="print alone")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(names):
        parser.error(f"--cases takes {', '.join(names)}, not {', '.join(sorted(unknown))}")
    device = acceleration.default_device()
    if device.type != "cuda" and not options.smoke:
        parser.error("there is no CUDA device here; --smoke runs anywhere, at toy sizes")
    against = peak(device, options.smoke)
    found: dict[str, Any] = {**turns.environment(["diffusers"]), "smoke": options.smoke, "peak": against, "cases": {}}
    table: list[tuple[str, ...]] = []
    with compiler(options.smoke):
        for case in CASES:
            if case.name not in options.cases:
                continue
            print(case.name, flush=True)
            case = case.small() if options.smoke else case
            batch = options.batch or case.batch
            steps, rounds = (2, 1) if options.smoke else (options.steps, options.rounds)
            found["cases"][case.name] = measure(case, batch, steps, rounds, against["teraflops"], device)
            table += rows_of(case.name, found["cases"][case.name])
            if not options.no_save:  # case by case, because the next may fail
                turns.save("gpu", found)
    columns = ("network", "what", "who", "compiled", "images/s", "utilisation", "peak GB", "warm-up s")
    print(f"{found['device']}: {against['teraflops']} TFLOP/s, {against['source']}")
    print(turns.table(columns, table))


if __name__ == "__main__":
    main()
