"""Five kinds of generative model on MNIST: about equal parameters, equal CPU time, one training loop, one judge.

    python benchmarks/generative_models.py --data mnist.npz --runs runs/generative            all of it
    python benchmarks/generative_models.py --runs runs/generative --table                     what is there, as a table

A VAE, a GAN, a normalising flow, a pixel autoregressive model and our diffusion model, each a file in `generative/`;
none is told the class. Everything runs on one thread, and time is the CPU time of the process, so that other work on
the machine takes nothing from anyone. Trained weights and results stay in the run folder, and what is there is not done
again.

Measured on each: bits/dimension of held-out pictures where the model has a density; the Frechet distance, precision and
recall of samples over the features of a classifier trained on the real training pictures; CPU seconds of sampling; and
the Frechet distance of shorter runs from other seeds, for how much luck is in it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import turns
from generative.autoregressive import PixelCNN
from generative.diffusion import ByBound, Diffusion
from generative.flow import Flow
from generative.gan import GAN
from generative.model import GenerativeModel, Images, train
from generative.vae import VAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from undiffuse import metrics, recipes
from undiffuse.data import Split
from undiffuse.experiment import load_data
from undiffuse.metrics import classifier
from undiffuse.modalities import image

MODELS: dict[str, Callable[[], GenerativeModel]] = {
    "VAE": VAE,
    "GAN": GAN,
    "normalising flow": Flow,
    "autoregressive": PixelCNN,
    "diffusion (ours)": Diffusion,
    "diffusion (ours), by its bound": ByBound,
}
MINUTES, REPEAT_MINUTES, REPEAT_SEEDS = 3.0, 0.25, (1, 2, 3)
SAMPLES, LIKELIHOODS, BY_ODE = 1000, 1000, 128  # pictures
NEIGHBOUR = 3  # of precision and recall
RESAMPLES = 50  # of the bootstrap
AT_ONCE = 200  # pictures
SHOWN = 10  # pictures a row
COLUMNS = (
    "model", "parameters", "steps", "bits/dim", "Frechet distance", "precision", "recall",
    "CPU s for 1,000 samples", "calls a sample", "Frechet distance of short runs",
)  # fmt: skip


class Judge:
    """What pictures are measured through, and the held-out pictures that they are measured against."""

    def __init__(self, split: Split, kept: Path) -> None:
        pictures, labels = split.train.samples[:], split.train.conditions["label"]
        self.held_out = split.held_out.samples[:]
        if not kept.is_file():
            held_out = (self.held_out, split.held_out.conditions["label"])
            classifier.train(pictures, labels, 10, held_out=held_out).save(kept)
        self.classifier = metrics.Classifier.load(kept)
        self.reference = self.classifier.features(self.held_out)

    def __call__(self, images: Images) -> dict[str, Any]:
        """Frechet distance with its standard error by the bootstrap over the samples; precision and recall."""
        features = self.classifier.features(images)
        generator = torch.Generator().manual_seed(0)
        again = [
            metrics.frechet_distance(
                features[torch.randint(len(features), (len(features),), generator=generator)], self.reference
            )
            for _ in range(RESAMPLES)
        ]
        near = metrics.precision_recall(self.reference[: len(features)], features, NEIGHBOUR)
        return {
            "n": len(images),
            "frechet": metrics.frechet_distance(features, self.reference),
            "frechet_error": statistics.stdev(again),
            "precision": near["precision"],
            "recall": near["recall"],
        }


def drawn(sample: Callable[[int], Images], n: int, seed: int) -> tuple[Images, float]:
    """n samples, a few hundred at once, and the CPU seconds for a thousand."""
    torch.manual_seed(seed)
    began = time.process_time()
    images = torch.cat([sample(min(AT_ONCE, n - done)) for done in range(0, n, AT_ONCE)])
    return images, (time.process_time() - began) * 1000 / n


def likelihood(bits: Callable[[Images], dict[str, Tensor]], images: Images) -> dict[str, dict[str, float]]:
    """Bits/dimension by the name of what they are: the mean over pictures, and its standard error."""
    torch.manual_seed(0)
    parts = [bits(some) for some in images.split(AT_ONCE)]
    values = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    return {
        name: {"mean": float(v.mean()), "error": float(v.std() / len(v) ** 0.5), "n": len(v)}
        for name, v in values.items()
    }


def made(name: str, seed: int) -> GenerativeModel:
    torch.manual_seed(seed)
    return MODELS[name]()


def trained(name: str, images: Images, minutes: float, seed: int, runs: Path) -> tuple[GenerativeModel, dict[str, Any]]:
    """The model, from the run folder or trained now and put there, and what its training took."""
    weights = runs / f"{name.replace(',', '').replace(' ', '-')}-{minutes:g}-{seed}.safetensors"
    facts = weights.with_suffix(".json")
    model = made(name, seed)
    if not facts.is_file():
        result = train(model, images, 60 * minutes, seed)
        save_file({key: value.contiguous() for key, value in result.model.state_dict().items()}, weights)
        found = {"steps": result.steps, "batch": model.batch, "cpu_seconds": result.cpu_seconds}
        facts.write_text(json.dumps(found | {"last_loss": result.last_loss, "diverged": result.diverged}))
    model.load_state_dict(load_file(weights))
    return model.requires_grad_(False).eval(), json.loads(facts.read_text())


def measure(model: GenerativeModel, judge: Judge, n: int, pictures: int) -> dict[str, Any]:
    """What a trained model is worth."""
    images, seconds = drawn(model.sample, n, seed=0)
    row = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bits_per_dim": likelihood(model.bits_per_dim, judge.held_out[:pictures]),
        "quality": judge(images),
        "cpu_seconds_for_1000": seconds,
        "evaluations": model.evaluations,
    }
    if isinstance(model, VAE):  # its samples are means, by custom
        row["quality_of_draws"] = judge(drawn(model.draw, n, seed=0)[0])
    if isinstance(model, Diffusion):  # hundreds of calls a picture
        row["bits_per_dim"] |= likelihood(model.bits_by_ode, judge.held_out[: min(pictures, BY_ODE)])
    return row


def picture(rows: Mapping[str, Images], path: Path) -> None:
    """Ten pictures of each, a row each, with its name."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.9 * len(rows)))
    for axis, (name, images) in zip(np.atleast_1d(axes), rows.items(), strict=True):
        row = image.grid(image.to_array(images[:SHOWN]), columns=SHOWN, padding=2, scale=2)
        axis.imshow(row, cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        axis.text(-8, 28, name.replace(", ", ",\n"), ha="right", va="center", fontsize=10)
    figure.subplots_adjust(left=0.22, right=0.99, top=0.99, bottom=0.01, hspace=0.05)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(found: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""

    def quality(measured: Mapping[str, Any]) -> list[str]:
        return [
            f"{measured['frechet']:.2f} ({measured['frechet_error']:.2f})",
            f"{measured['precision']:.2f}",
            f"{measured['recall']:.2f}",
        ]

    lines = []
    for name, row in found["rows"].items():
        density = [f"{what} {b['mean']:.3f} ({b['error']:.3f})" for what, b in row["bits_per_dim"].items()]
        short = sorted(run["frechet"] for run in row.get("repeats", []) if not run["diverged"])
        steps = f"{row['training']['steps']:,} of {row['training']['batch']}"
        lines.append(
            [name, f"{row['parameters']:,}", steps, "; ".join(density) or "none", *quality(row["quality"]),
             f"{row['cpu_seconds_for_1000']:.1f}", row["evaluations"], ", ".join(f"{value:.2f}" for value in short)]
        )  # fmt: skip
    lines.append(["real training pictures", "", "", "", *quality(found["real"]), "", "", ""])
    return turns.table(COLUMNS, lines)


def run(options: argparse.Namespace, result: Path) -> dict[str, Any]:
    """Train and measure what is missing; what was found is written after every model."""
    split = load_data(recipes.named("mnist").changed([f"data.path={options.data}"]))
    pictures: Tensor = split.train.samples[:]
    judge = Judge(split, options.runs / "classifier.safetensors")
    real = pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: options.n]]
    setting = {"minutes": options.minutes, "repeat_minutes": options.repeat_minutes}
    start = {"about": turns.environment(()), **setting, "judge": judge.classifier.describe(), "real": judge(real)}
    found: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else start | {"rows": {}}
    shown = {"training pictures": real}
    for name in options.models:
        model, facts = trained(name, pictures, options.minutes, 0, options.runs)
        shown[name] = drawn(model.sample, SHOWN, seed=0)[0]
        if name not in found["rows"]:
            found["rows"][name] = {"training": facts, **measure(model, judge, options.n, options.likelihoods)}
            result.write_text(json.dumps(found, indent=1) + "\n")
            print(table(found), flush=True)
    picture(shown, options.runs / "comparison.png")
    for seed in options.seeds:
        for name in options.models:
            repeats = found["rows"][name].setdefault("repeats", [])
            if seed not in [repeat["seed"] for repeat in repeats]:
                model, facts = trained(name, pictures, options.repeat_minutes, seed, options.runs)
                repeats.append({"seed": seed, **facts, **judge(drawn(model.sample, options.n, seed)[0])})
                result.write_text(json.dumps(found, indent=1) + "\n")
                print(name, repeats[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="mnist.npz")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of CPU time, for each model")
    parser.add_argument("--repeat-minutes", type=float, default=REPEAT_MINUTES)
    parser.add_argument("--seeds", nargs="*", type=int, default=REPEAT_SEEDS, help="of the short runs")
    parser.add_argument("--n", type=int, default=SAMPLES, help="samples to measure")
    parser.add_argument("--likelihoods", type=int, default=LIKELIHOODS, help="held-out pictures to measure it on")
    parser.add_argument("--table", action="store_true", help="train and measure nothing")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    result = options.runs / f"results-{options.minutes:g}.json"
    found = json.loads(result.read_text()) if options.table else run(options, result)
    print(table(found))
    if options.save:
        turns.save("generative_models", found)


if __name__ == "__main__":
    main()
