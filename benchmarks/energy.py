"""The energy view, measured: the landscapes of a mixture, its barrier, and whether a network has an energy at all.

    python benchmarks/energy.py [runs/mnist] [--out docs/images/energy.png]

The energy of a level is E(x) = -log p_t(x), and the score is -grad E. For a mixture in two dimensions both are known.
The barrier is that of two equal Gaussians at -1 and 1 with standard deviation 0.2: the energy in the middle less that
at the bottom. With a run: a field is the gradient of an energy where its Jacobian J is symmetric, and for held-out
pictures under their own conditions

    asymmetry = |J v - J^T v| / |J v + J^T v|,      J = d x0_hat / d x_t,  v ~ N(0, I)

(root mean squares over pictures and draws) is 0 for a symmetric J and 1 for one without any symmetry.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from undiffuse import experiment, pipeline
from undiffuse.exact import Mixture
from undiffuse.examples import balanced, centred, conditions_of
from undiffuse.files import atomic_path
from undiffuse.noise import NoiseSource
from undiffuse.plots import to_png
from undiffuse.schedule import Cosine, along_batch

LANDSCAPES = (6.0, 2.0, 0.0, -3.0)  # log-SNRs
BARRIERS = (8.0, 4.0, 3.0, 2.0, 1.0, 0.0)
LEVELS = (8.0, 4.0, 0.0, -4.0, -8.0)


def ring() -> Mixture:
    """Five Gaussians on a circle, one of them with half of the mass."""
    angle = torch.arange(5, dtype=torch.float64) * 2 * torch.pi / 5 + torch.pi / 2
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(Cosine(), torch.tensor([4.0, 1, 1, 1, 1]), means, torch.full((5, 2), 0.04))


def barrier(log_snr: float) -> float:
    """Of two equal Gaussians at -1 and 1, standard deviation 0.2, at a noise level; 0 once there is one bottom."""
    mixture = Mixture(Cosine(), torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.04))
    x = torch.linspace(0, 1.2, 2001, dtype=torch.float64)[:, None]
    energy = -mixture.log_prob(x, mixture.schedule.time(log_snr))
    return float(energy[0] - energy.min())


def asymmetry(run: Path, n: int = 32, draws: int = 4) -> dict[float, float]:
    """That of a run's network, by log-SNR."""
    model, (_, split) = pipeline.load(run), experiment.load_experiment_data(run)
    denoiser, rows = model.denoiser.eval().requires_grad_(False), balanced(split.held_out, n)
    denoiser.precision = None  # float32: derivatives of bfloat16 would be asymmetric by rounding
    x0 = model.codec.encode(centred(split.held_out, model.shape, rows))
    with torch.no_grad():
        given = denoiser.encode(conditions_of(split.held_out, rows, model))
    source, found = NoiseSource(rows, x0.shape[1:]), {}
    for log_snr in LEVELS:
        t = denoiser.schedule.time(log_snr).expand(n)
        alpha, sigma = along_batch(denoiser.schedule.alpha(t), x0), along_batch(denoiser.schedule.sigma(t), x0)
        x_t = alpha * x0 + sigma * source.normal("noise")
        apart, together = torch.zeros(()), torch.zeros(())
        for k in range(draws):
            v = source.branch(1).normal("noise", k)
            forward, backward = products(lambda x, t=t: denoiser(x, t, given).x0, x_t, v)
            apart, together = (
                apart + (forward - backward).square().sum(),
                together + (forward + backward).square().sum(),
            )
        found[log_snr] = float((apart / together).sqrt())
    return found


def products(function, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """J v and J^T v, J v as the derivative of J^T w along w."""
    x = x.clone().requires_grad_()
    w = torch.zeros_like(x, requires_grad=True)
    y = function(x)
    (along_w,) = torch.autograd.grad(y, x, w, create_graph=True)
    (forward,) = torch.autograd.grad(along_w, w, v, retain_graph=True)
    (backward,) = torch.autograd.grad(y, x, v)
    return forward, backward


def landscapes() -> Figure:
    """The energy of the ring at four levels, with the score as arrows."""
    figure, mixture = Figure(figsize=(11, 3), layout="constrained"), ring()
    axis = torch.linspace(-1.7, 1.7, 121, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points, few = torch.stack([x, y], -1), slice(6, None, 12)
    for panel, log_snr in zip(figure.subplots(1, len(LANDSCAPES)), LANDSCAPES, strict=True):
        t = mixture.schedule.time(log_snr)
        energy = -mixture.log_prob(points.reshape(-1, 2), t).reshape(x.shape)
        score = mixture(points[few, few].reshape(-1, 2), t).score.reshape(*x[few, few].shape, 2)
        arrows = score / (1 + score.norm(dim=-1, keepdim=True))  # longer ones would cover the picture
        panel.contourf(x, y, (energy - energy.min()).clamp(max=12), levels=24, cmap="cividis_r")
        panel.quiver(x[few, few], y[few, few], arrows[..., 0], arrows[..., 1], color="white", scale=14, width=0.006)
        panel.set(title=f"log-SNR {log_snr:g}", aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        panel.grid(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, help="where to write the picture of the landscapes")
    options = parser.parse_args()
    print("| log-SNR | barrier, nats |\n|---|---|")
    for log_snr in BARRIERS:
        print(f"| {log_snr:g} | {barrier(log_snr):.3f} |")
    if options.run:
        print("\n| log-SNR | asymmetry of the network |\n|---|---|")
        for log_snr, value in asymmetry(options.run).items():
            print(f"| {log_snr:g} | {value:.3f} |")
    if options.out:
        with atomic_path(options.out) as path:
            path.write_bytes(to_png(landscapes()))


if __name__ == "__main__":
    main()
