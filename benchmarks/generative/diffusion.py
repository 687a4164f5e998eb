"""Ours: a denoiser, trained and sampled through the Python interface of undiffuse.

    x_t = alpha x_0 + sigma noise,        loss = weight(t) |x0_hat(x_t, t) - x_0|^2

The network, schedule, prediction and weight are those of the recipe `mnist`, narrower and without the condition.

The weight says what the model is for: the recipe's, min-SNR, is for the look of samples; under the weight of `ByBound`
the loss is the variational bound of the likelihood.

Reference: Ho et al. 2020; Salimans & Ho 2022, appendix D (v); Hang et al. 2023 (min-SNR); Kingma et al.
2021, VDM, eq. 11 (the bound); Song et al. 2021, eq. 39 (the likelihood by the ODE).
"""

import torch
from generative.model import SIDE, GenerativeModel, Images, PerImage, to_signal
from jaxtyping import Float
from torch import Tensor

import undiffuse as ud
from undiffuse.codecs import Pixels
from undiffuse.networks import UNet
from undiffuse.pipeline import DEFAULTS

DATA_STD = 0.6162  # of MNIST's pixels in [-1, 1]
BOUND_DRAWS = 16  # noise levels of each picture


def seeds(n: int) -> Tensor:
    """Streams for n samples, drawn with torch's generator."""
    return torch.randint(1 << 62, (n,))


class Diffusion(GenerativeModel):
    """A U-Net that predicts v on the cosine schedule, sampled by the library's default sampler."""

    evaluations = DEFAULTS["steps"]
    learning_rate = 2e-3
    schedule, predicts, weight = ud.schedule.Cosine, ud.prediction.V(), "min-snr"

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        network = UNet(1, width, [1, 2], blocks=1, patch=2, resample="narrow")
        self.denoiser = ud.Denoiser(network, self.schedule(), self.predicts, data_std=DATA_STD)
        self.objective = ud.Objective(weight=self.weight, drop=0.0)

    def loss(self, images: Images) -> Float[Tensor, ""]:
        return self.objective(self.denoiser, to_signal(images)).mean()

    def sample(self, n: int) -> Images:
        pipeline = ud.Pipeline(self.denoiser, Pixels(), (1, SIDE, SIDE))
        return torch.from_numpy(pipeline.sample(n, seed=int(seeds(1))))[:, None]

    def bits_per_dim(self, images: Images) -> dict[str, PerImage]:
        bound = ud.likelihood.variational_bound(self.denoiser, to_signal(images), seeds(len(images)), draws=BOUND_DRAWS)
        return {"at most (variational bound)": bound.bits_per_dim}

    def bits_by_ode(self, images: Images) -> dict[str, PerImage]:
        """By the probability-flow ODE, of pictures whose bins are filled with noise as the flow fills them."""
        own = seeds(len(images))
        filled = ud.likelihood.dequantised(to_signal(images), own, "uniform", std=self.finest_std())
        log_prob = ud.likelihood.log_prob(self.denoiser, filled.x, own)
        return {"exact for spread bytes (ODE)": filled.bits_per_dim(log_prob.nats)}

    def finest_std(self) -> float:
        """sigma / alpha at t_min."""
        schedule, t = self.denoiser.schedule, self.denoiser.t_min
        return float((schedule.sigma(t) / schedule.alpha(t)).detach())


class ByBound(Diffusion):
    """The same network, trained on the variational bound, with a schedule that is learned to lower its variance."""

    # under a learned schedule a time has no meaning that stays, so the network is told the level
    schedule, predicts, weight = ud.schedule.Learned, ud.prediction.V(label="log-snr"), "bound"
