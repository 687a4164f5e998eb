"""A trained model as a progressive code of pictures: bits so far against the error that is left, level by level.

    python benchmarks/rate_distortion.py runs/mnist [--n 512] [--levels 64] [--out docs/images/rate-distortion.png]

The curve is `undiffuse.likelihood.rate_distortion` of held-out pictures under their own conditions (Ho et al. 2020,
section 4.3). Beside it two curves of a Gaussian with the covariance of the training pictures: the same code with its
exact denoiser, and its least rate (reverse water-filling; Cover & Thomas, theorem 10.3.3), which the least rate of no
data of that covariance exceeds. Writes the numbers to --results, and with --out the picture.
"""

import argparse
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from undiffuse import experiment, pipeline
from undiffuse.examples import balanced, centred, conditions_of
from undiffuse.files import atomic_path, write_text
from undiffuse.likelihood import Bound, rate_distortion, variational_bound
from undiffuse.noise import NoiseSource
from undiffuse.pipeline import Pipeline
from undiffuse.plots import to_png
from undiffuse.schedule import along_batch

RESULTS = Path(__file__).parent / "results" / "rate_distortion.json"
SHOWN = (0.001, 0.004, 0.01, 0.03, 0.1, 0.4)  # bits/dimension at which estimates are drawn
PICTURES = 4
LINES = {"network": ("#0072B2", "-"), "code": ("#D55E00", "--"), "least": ("#009E73", ":")}  # Okabe & Ito's colours


def estimates(model: Pipeline, x0: Tensor, rows: Tensor, conditions: dict[str, Tensor], log_snr: Tensor) -> Tensor:
    """x0_hat of a few pictures, noised to a level; the noise is a picture's own, the same at every level."""
    denoiser, noise = model.denoiser, NoiseSource(rows, x0.shape[1:]).normal("noise")
    t = denoiser.schedule.time(log_snr).expand(len(x0))
    alpha, sigma = along_batch(denoiser.schedule.alpha(t), noise), along_batch(denoiser.schedule.sigma(t), noise)
    return denoiser(alpha * x0 + sigma * noise, t, denoiser.encode(conditions)).x0


def gaussian_code(eigenvalues: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Rate in bits/dimension and squared error of the code whose denoiser is a Gaussian's own, at each level."""
    signal = log_snr.exp()[:, None] * eigenvalues
    return (1 + signal).log2().mean(1) / 2, (eigenvalues / (1 + signal)).mean(1)


def water_filling(eigenvalues: Tensor, error: Tensor) -> Tensor:
    """The least rate of a Gaussian in bits/dimension at squared errors (n,) below its variance."""
    low, high = torch.zeros_like(error), eigenvalues.max().expand(len(error)).clone()
    for _ in range(100):  # bisection for the level of the water
        water = (low + high) / 2
        below = torch.minimum(eigenvalues, water[:, None]).mean(1) < error
        low, high = torch.where(below, water, low), torch.where(below, high, water)
    return (eigenvalues / high[:, None]).log2().clamp(min=0).mean(1) / 2


def grey(error: Tensor) -> Tensor:
    """A squared error on the scale [-1, 1] as a root mean square of 255 grey values."""
    return 127.5 * error.sqrt()


def bounds(model: Pipeline, x0: Tensor, rows: Tensor, conditions: dict[str, Tensor], levels: int) -> Bound:
    """The bound of every picture, by its levels."""
    parts = []
    for part in torch.arange(len(x0)).split(256):
        given = {name: values[part] for name, values in conditions.items()}
        parts.append(variational_bound(model.denoiser, x0[part], rows[part], given, draws=levels))
    return Bound(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Bound)))


def picture(
    curve: dict[str, Tensor], gaussian: dict[str, tuple[Tensor, Tensor]], drawn: dict[str, np.ndarray]
) -> Figure:
    """Two curves over a row of estimates."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    left, right = above.subplots(1, 2)
    colour = LINES["network"]
    left.plot(curve["rate"], curve["distortion"], colour[1], color=colour[0], label="the network")
    for name, label in (("code", "a Gaussian's exact denoiser"), ("least", "least rate of that Gaussian")):
        rate, error = gaussian[name]
        left.plot(rate, error, LINES[name][1], color=LINES[name][0], label=label)
    left.set(xlabel="rate, bits/dimension", ylabel="error left, of 255", xlim=(0, 1.5), ylim=(0, None))
    left.legend()
    right.plot(curve["log_snr"], curve["bits_per_unit"], colour[1], color=colour[0])
    right.set(xlabel="log-SNR: noise at the left, data at the right", ylabel="bits/dimension for each unit of log-SNR")
    for axis, (title, pictures) in zip(below.subplots(1, len(drawn)), drawn.items(), strict=True):
        axis.imshow(np.concatenate(list(pictures)), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    return figure


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=512, help="held-out pictures")
    parser.add_argument("--levels", type=int, default=64)
    parser.add_argument("--out", type=Path, help="where to write the picture")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    model, (_, split) = pipeline.load(options.run), experiment.load_experiment_data(options.run)
    model.denoiser.eval()
    rows = balanced(split.held_out, options.n)
    x0 = model.codec.encode(centred(split.held_out, model.shape, rows))
    conditions = conditions_of(split.held_out, rows, model)
    bound = bounds(model, x0, rows, conditions, options.levels)
    curve = rate_distortion(bound)._asdict()
    width = float(curve["log_snr"].diff().mean())
    curve["bits_per_unit"] = bound.by_level.mean(0) / (width * math.log(2))

    training = model.codec.encode(centred(split.train, model.shape, torch.arange(min(len(split.train), 20_000))))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(training.flatten(1).double().T)).clamp(min=0)
    rate, error = gaussian_code(eigenvalues, torch.linspace(-12, 12, 200, dtype=torch.float64))
    gaussian = {"code": (rate, grey(error)), "least": (water_filling(eigenvalues, error), grey(error))}

    def at(name: str, error: float) -> float:
        rate, errors = (values.flip(0).numpy() for values in gaussian[name])
        return float(np.interp(error, errors, rate))

    print("| log-SNR | bits/dimension so far | error left, of 255 | Gaussian's code there | least for the Gaussian |")
    print("|---|---|---|---|---|")
    columns = (curve[name].tolist() for name in ("log_snr", "rate", "distortion"))
    for level, so_far, left in zip(*columns, strict=True):
        print(f"| {level:.2f} | {so_far:.4f} | {left:.2f} | {at('code', left):.4f} | {at('least', left):.4f} |")
    about: dict[str, Any] = {
        "recipe": experiment.recipe_of(options.run).name,
        "n": len(x0),
        "bits_per_dim": float(bound.bits_per_dim.mean()),
    }
    numbers = {name: [float(f"{value:.5g}") for value in values.tolist()] for name, values in curve.items()}
    write_text(options.results, json.dumps({**about, **numbers}) + "\n")
    if options.out:
        drawn = {}
        for target in SHOWN:
            i = int((curve["rate"] - target).abs().argmin())
            few = {name: values[:PICTURES] for name, values in conditions.items()}
            x0_hat = estimates(model, x0[:PICTURES], rows[:PICTURES], few, curve["log_snr"][i])
            drawn[f"{float(curve['rate'][i]):.2g} bits\nerror {float(curve['distortion'][i]):.0f}"] = model.decode(
                x0_hat
            )
        with atomic_path(options.out) as path:
            path.write_bytes(to_png(picture(curve, gaussian, {**drawn, "original\n": model.decode(x0[:PICTURES])})))


if __name__ == "__main__":
    main()
