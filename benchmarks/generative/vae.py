"""A variational autoencoder: a picture is decoded from a code, and the code is inferred by a second network.

    log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || N(0, I)),        q(z|x) = N(mean(x), std(x)^2)

is what is trained. With K codes for each picture the importance-weighted bound is tighter:

    log p(x) >= E log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)

Reference: Kingma & Welling 2014, eq. 10; Burda et al. 2016, eq. 8.
"""

import math

import torch
from generative import logistic
from generative.model import GenerativeModel, Images, PerImage, bits, to_bytes, to_signal
from jaxtyping import Float
from torch import Tensor, nn

CODE = 32  # numbers
IMPORTANCE_SAMPLES = 64


class VAE(GenerativeModel):
    """Convolutions to a Gaussian over codes, and back to a mixture of logistics at each pixel, given the code."""

    evaluations = 1
    learning_rate = 2e-3

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(),  # 14 x 14
            nn.Conv2d(32, width, 4, 2, 1), nn.SiLU(),  # 7 x 7
            nn.Conv2d(width, 64, 3, 2, 1), nn.SiLU(),  # 4 x 4
            nn.Flatten(), nn.Linear(64 * 16, 2 * CODE),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(CODE, width * 49), nn.Unflatten(1, (width, 7, 7)), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.SiLU(),  # 14 x 14
            nn.ConvTranspose2d(width, 32, 4, 2, 1), nn.SiLU(),  # 28 x 28
            nn.Conv2d(32, logistic.PARAMETERS, 3, 1, 1),
        )  # fmt: skip

    def _inferred(self, x: Float[Tensor, "batch 1 28 28"]) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x), (B, CODE)."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        return mean, log_std.clamp(-6, 3)

    def elbo(self, images: Images) -> PerImage:
        """The lower bound of log p(x) of each picture in nats, by one code; the divergence is in closed form."""
        x = to_signal(images)
        mean, log_std = self._inferred(x)
        z = mean + log_std.exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        return logistic.log_prob(x, self.decoder(z)).flatten(1).sum(1) - divergence

    def importance_bound(self, images: Images, k: int = IMPORTANCE_SAMPLES) -> PerImage:
        """The importance-weighted bound of log p(x) of each picture in nats, by k codes."""
        x = to_signal(images)
        mean, log_std = self._inferred(x)
        weights = []
        for _ in range(k):
            noise = torch.randn_like(mean)
            z = mean + log_std.exp() * noise
            log_ratio = (0.5 * (noise.square() - z.square()) + log_std).sum(1)  # log N(z; 0, 1) / q(z|x)
            weights.append(logistic.log_prob(x, self.decoder(z)).flatten(1).sum(1) + log_ratio)
        return torch.stack(weights).logsumexp(0) - math.log(k)

    def loss(self, images: Images) -> Float[Tensor, ""]:
        """The negative bound, in bits/dimension."""
        return bits(-self.elbo(images)).mean()

    @torch.no_grad()
    def sample(self, n: int) -> Images:
        """The mean of p(x|z) for codes of the prior, as is the custom: a draw has the noise of each pixel on top."""
        return to_bytes(logistic.mean(self.decoder(torch.randn(n, CODE))))

    @torch.no_grad()
    def draw(self, n: int) -> Images:
        """Draws of p(x|z) for codes of the prior: what the likelihood is of."""
        return to_bytes(logistic.sample(self.decoder(torch.randn(n, CODE))))

    @torch.no_grad()
    def bits_per_dim(self, images: Images) -> dict[str, PerImage]:
        tighter = f"at most, by {IMPORTANCE_SAMPLES} importance samples"
        return {"at most (ELBO)": bits(-self.elbo(images)), tighter: bits(-self.importance_bound(images))}
