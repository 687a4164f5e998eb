"""Inverse problems on held-out digits: a hole, a blur and a coarser grid, undone with a model that saw none of them.

    python benchmarks/inverse_problems.py runs/mnist [--n 16] [--steps 20] [--out docs/images/inverse-problems.png]

The model is sampled without a label. For each problem and each way of guiding: the PSNR of one sample and of the mean
of 8, with standard errors, and how far A x is from y (root mean square, in the units of the model, where a picture
spans 2). The scale of `Steered` is the best of `SCALES` for one sample of other digits. Prints a table in markdown;
--out writes a picture: rows original, measurement, a sample, another, the mean of 8; a block of columns per problem.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse import experiment, metrics, pipeline, samplers
from undiffuse.denoiser import BaseDenoiser
from undiffuse.examples import balanced, centred
from undiffuse.guidance import Blurred, Downsampled, Masked, Measurement, Misfit, Posterior, Steered
from undiffuse.guidance.least_squares import least_squares
from undiffuse.modalities import image
from undiffuse.noise import NoiseSource
from undiffuse.pipeline import Pipeline

DRAWS, TUNED_ON, SHOWN, BATCH = 8, 8, 4, 64
SCALES = (3.0, 10.0, 30.0, 100.0)
SAMPLER, GRID = "ddim:eta=1.0", "log-snr"
Guide = Callable[[BaseDenoiser, Tensor], BaseDenoiser]  # with y (B, ...)


@dataclass(frozen=True)
class Problem:
    """y = A x_0 + n, n ~ N(0, noise_std^2); shown: y as a picture of the sample's size."""

    measure: Measurement
    noise_std: float
    shown: Callable[[Tensor], Tensor]

    def measured(self, x0: Tensor) -> Tensor:
        """y of each picture, its noise from a stream of its own."""
        y = self.measure(x0)
        return y + self.noise_std * NoiseSource(range(len(y)), y.shape[1:], y.device).normal("noise")

    def guides(self) -> dict[str, Guide]:
        """The ways that have nothing to tune."""

        def posterior(covariance: str) -> Guide:
            return lambda plain, y: Posterior(plain, self.measure, y, self.noise_std, covariance=covariance)

        return {f"`Posterior`, {covariance}": posterior(covariance) for covariance in ("network", "isotropic")}

    def steered(self, scale: float) -> Guide:
        """Along the gradient of |A x0_hat - y|, through the network."""
        return lambda plain, y: Steered(plain, Misfit(self.measure, y), scale)


def hole(side: int) -> Tensor:
    """A mask that hides the 12 x 12 pixels in the middle."""
    mask = torch.ones(1, side, side)
    mask[:, side // 2 - 6 : side // 2 + 6, side // 2 - 6 : side // 2 + 6] = 0
    return mask


PROBLEMS = {
    "inpainting: a hole of 12 x 12": Problem(Masked(hole(28)), 0.0, lambda y: y),
    "deblurring: 2 pixels, noise 0.02": Problem(Blurred.gaussian(2.0), 0.02, lambda y: y),
    "super-resolution: 7 to 28": Problem(Downsampled(4), 0.0, lambda y: F.interpolate(y, scale_factor=4.0)),
}


@dataclass(frozen=True)
class Solver:
    """A trained model, and how it is walked."""

    model: Pipeline
    steps: int

    def solved(self, guide: Guide, y: Tensor, draws: int) -> Tensor:
        """Samples (N, draws, C, H, W) for y (N, ...), draw k of digit i from seed i + k 2^32."""
        plain, times = self.model.denoiser, self.model.times(self.steps, GRID, SAMPLER)
        seeds = (torch.arange(len(y))[:, None] + (torch.arange(draws) << 32)).flatten()
        wanted, found = y.repeat_interleave(draws, 0), []
        for chosen in torch.arange(len(seeds)).split(BATCH):
            x = plain.prior(seeds[chosen], self.model.shape)
            guided = guide(plain, wanted[chosen])
            found.append(samplers.sample(guided, samplers.named(SAMPLER), x, times, seeds[chosen]))
        return torch.cat(found).unflatten(0, (len(y), draws))

    def db(self, x: Tensor, truth: Tensor) -> metrics.Measurement:
        """PSNR of x (N, C, H, W) as a picture, in decibels."""
        return metrics.measure_psnr(self.model.codec.decode(x), self.model.codec.decode(truth))

    def tuned(self, problem: Problem, truth: Tensor) -> float:
        """The scale of `Steered` whose single samples are best."""
        y = problem.measured(truth)
        found = {scale: self.solved(problem.steered(scale), y, 1)[:, 0] for scale in SCALES}
        return max(SCALES, key=lambda scale: self.db(found[scale], truth).value)


def written(db: metrics.Measurement) -> str:
    return f"{db.value:.2f} ({db.error:.2f})"


def rows(solver: Solver, name: str, truth: Tensor, mean: Tensor, apart: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A line of the table for each way, and its samples (N, draws, C, H, W). apart: other digits, to tune on."""
    problem = PROBLEMS[name]
    y = problem.measured(truth)

    def line(way: str, calls: str, x: Tensor) -> str:
        many = written(solver.db(x.mean(1), truth)) if x.shape[1] > 1 else ""
        off = float((problem.measure(x[:, 0]) - y).square().mean().sqrt())
        return f"| {name} | {way} | {calls} | {written(solver.db(x[:, 0], truth))} | {many} | {off:.4f} |"

    ridge = torch.full((len(y),), (problem.noise_std / solver.model.denoiser.data_std) ** 2, dtype=torch.float64)
    linear = mean + least_squares(problem.measure, y - problem.measure(mean), truth, ridge, 50)
    yield line("the mean digit, moved by least squares", "", linear[:, None]), linear[:, None]
    if isinstance(problem.measure, Downsampled):
        enlarged = F.interpolate(y, scale_factor=float(problem.measure.factor), mode="bicubic")
        yield line("bicubic", "", enlarged[:, None]), enlarged[:, None]
    scale = solver.tuned(problem, apart)
    for way, guide in (problem.guides() | {f"`Steered`, scale {scale:g}": problem.steered(scale)}).items():
        x = solver.solved(guide, y, DRAWS)
        yield line(way, f"{solver.steps}" + (" and gradients" if "isotropic" not in way else ""), x), x


def picture(blocks: list[list[Tensor]]) -> np.ndarray:
    """Rows of pictures, uint8 (n, C, H, W) each, one block of columns per problem with white between."""
    white = torch.full_like(blocks[0][0][:1], 255)
    lines = [torch.cat([part for block in blocks for part in (block[k], white)][:-1]) for k in range(len(blocks[0]))]
    return image.grid(image.to_array(torch.cat(lines)), columns=len(lines[0]), padding=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = pipeline.load(given.run, device="cpu")
    _, split = experiment.load_experiment_data(given.run)
    solver = Solver(model, given.steps)
    digits = centred(split.held_out, model.shape)[balanced(split.held_out, given.n + TUNED_ON)]
    truth, apart = model.codec.encode(digits).split([given.n, TUNED_ON])
    mean = centred(split.train, model.shape).double().mean(0, keepdim=True).float() / 127.5 - 1
    print(f"{given.n} held-out digits, {SAMPLER} on {GRID}, {given.steps} calls; PSNR in dB (standard error)\n")
    print(f"| problem | way | calls | one sample | the mean of {DRAWS} | A x - y |\n|---|---|---|---|---|---|")
    blocks = []
    for name, problem in PROBLEMS.items():
        for line, x in rows(solver, name, truth, mean, apart):
            print(line, flush=True)
            if "network" in line:
                shown = [truth, problem.shown(problem.measured(truth)), x[:, 0], x[:, 1], x.mean(1)]
                blocks.append([model.codec.decode(pictures[:SHOWN]) for pictures in shown])
    if given.out:
        image.save(given.out, picture(blocks)[None], overwrite=True, columns=1)


if __name__ == "__main__":
    main()
