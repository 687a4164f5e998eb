"""The sampler race on a trained model: distance to the model's own fine solution, against diffusers and k-diffusion.

    python benchmarks/model_race.py RUN [--n 32] [--counts 5,8,10,20] [--out model_race.json]

There is no exact solution here, so the yardstick is the model's own in 1,000 steps. Peers walk grids that are handed to
them, because the model's schedule need not be one of theirs. Images are conditional and unguided. `fitted` is our
default sampler on a grid fitted on other noise. The Frechet distance of samplers is what `undiffuse compare` measures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import peers
import torch
from peer_configurations import Configuration
from torch import Tensor

import undiffuse
from undiffuse.denoiser import BaseDenoiser, Estimate
from undiffuse.pipeline import DEFAULTS
from undiffuse.samplers import grid, named, sample
from undiffuse.samplers.fit import fit, truth

REFERENCE_STEPS = 1000
PEERS = [
    *(
        Configuration("diffusers", solver, (("solver_order", order),), on)
        for solver in ("UniPCMultistep", "DPMSolverMultistep", "DEISMultistep")
        for order in (2, 3)
        for on in ("karras", "exponential", "quadratic", "quadratic, stopping at t_0")
        if not (solver == "DEISMultistep" and "stopping" not in on)
    ),
    *(Configuration("diffusers", "EulerDiscrete", (), on) for on in ("karras", "exponential", "quadratic")),
    *(Configuration("k-diffusion", s, (), on) for s in ("dpmpp_2m", "heun", "lms") for on in ("karras", "exponential")),
]
OURS = [
    *(f"{DEFAULTS['sampler']}@{g}" for g in ("vp-quadratic", "log-snr", "karras")),
    *(f"{s}@{g}" for s in ("adams:order=3", "unipc:order=2", "dpm++:order=2", "ipndm:order=3")
      for g in ("vp-quadratic", "log-snr", "karras", "angle")),
]  # fmt: skip


class Trained:
    """A denoiser as peers.py sees a model: by sigma / alpha, on flat float64 samples; counts its calls."""

    def __init__(self, denoiser: BaseDenoiser, shape: tuple[int, ...]) -> None:
        self.denoiser, self.shape, self.schedule, self.evaluations = denoiser, shape, denoiser.schedule, 0
        self.largest = self.ratio(denoiser.t_max)

    def ratio(self, t: float | Tensor) -> Tensor:
        """sigma / alpha at time t, within the range that the model knows."""
        t = torch.as_tensor(t, dtype=torch.float64).clamp(min=self.denoiser.t_min, max=self.denoiser.t_max)
        return torch.exp(-self.schedule.half_log_snr(t))

    def __call__(self, x: Tensor, ratio: Tensor) -> Estimate:
        """The estimate for x / alpha (B, D) at sigma / alpha = ratio."""
        self.evaluations += 1
        t = self.schedule.time(-2 * torch.log(ratio.double())).clamp(self.denoiser.t_min, self.denoiser.t_max)
        at = (x * self.schedule.alpha(t)).reshape(-1, *self.shape).float()
        found: Estimate = self.denoiser(at, t)
        return Estimate(at.flatten(1).double(), found.output.flatten(1).double(), found.level, found.target)


def race(run: Path, n: int, counts: list[int]) -> list[dict[str, Any]]:
    """Rows of {"evaluations", "who", "name", "error"}."""
    model = undiffuse.load(run)
    labels = {"label": torch.arange(n) % len(model.classes)} if model.classes else {}
    denoiser = model.guided(1.0, **labels)
    x, fit_x, held_out = (model.denoiser.prior(range(first, first + n), model.shape) for first in (0, 10**6, 2 * 10**6))
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        end = truth(denoiser, x, REFERENCE_STEPS)

        def error(found: Tensor) -> float:
            return float((found.reshape(end.shape) - end).double().square().mean().sqrt())

        for count in counts:
            for configuration in PEERS:
                trained = Trained(denoiser, model.shape)
                scale = torch.hypot(trained.schedule.alpha(1.0), trained.schedule.sigma(1.0))
                walk = peers._run_diffusers if configuration.peer == "diffusers" else peers._run_k_diffusion
                try:
                    found = error(walk(configuration, trained, x.flatten(1).double() / scale, count))
                except Exception as reason:  # a peer's bug is a result here
                    print(f"failed: {configuration.name} at {count}: {reason!r:.100}")
                    continue
                if trained.evaluations <= count:
                    rows.append({"evaluations": count, "who": "peer", "name": configuration.name, "error": found})
            for name in OURS:
                sampler, on = name.split("@")
                times = grid.named(on, denoiser.schedule, count, denoiser.t_min, denoiser.t_max)
                found = error(sample(denoiser, named(sampler), x, times))
                rows.append({"evaluations": count, "who": "ours", "name": name, "error": found})
            fitted = fit(denoiser, named(DEFAULTS["sampler"]), count, fit_x, held_out)
            found = error(sample(denoiser, named(DEFAULTS["sampler"]), x, fitted.times))
            rows.append({"evaluations": count, "who": "fitted", "name": DEFAULTS["sampler"], "error": found})
            best = {who: min((r["error"], r["name"]) for r in rows if r["who"] == who and r["evaluations"] == count)
                    for who in ("peer", "ours", "fitted")}  # fmt: skip
            default = next(r["error"] for r in rows if r["evaluations"] == count and r["name"] == OURS[0])
            print(
                f"{count:3d} evaluations: peers' best {best['peer'][0]:.4f} ({best['peer'][1]}), "
                f"ours {best['ours'][0]:.4f} ({best['ours'][1]}), default {default:.4f}, "
                f"default on a fitted grid {best['fitted'][0]:.4f}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--counts", default="5,8,10,20")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = race(given.run, given.n, [int(count) for count in given.counts.split(",")])
    if given.out:
        given.out.write_text(json.dumps({"run": given.run.name, "n": given.n, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
