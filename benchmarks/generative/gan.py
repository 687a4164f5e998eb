"""A generative adversarial network: a generator that a discriminator cannot tell from the data.

    discriminator:  E softplus(-D(x)) + E softplus(D(G(z))) + gamma / 2 E |grad_x D(x)|^2
    generator:      E softplus(-D(G(z)))                                            (non-saturating)

There is no density: a GAN says nothing of how likely a picture is.

Reference: Goodfellow et al. 2014, section 3; Mescheder et al. 2018, Which training methods for GANs do actually
converge?, eq. 9 (the penalty R1, and steps of both players at once).
"""

import torch
import torch.nn.functional as F
from generative.model import GenerativeModel, Images, to_bytes, to_signal
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

CODE = 32  # numbers
GAMMA = 1.0


class GAN(GenerativeModel):
    """Transposed convolutions from a code to a picture, and convolutions from a picture to one score."""

    evaluations = 1
    learning_rate = 2e-3
    betas = (0.0, 0.99)

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(CODE, width * 49), nn.Unflatten(1, (width, 7, 7)), nn.GroupNorm(8, width), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.GroupNorm(8, width), nn.ReLU(),  # 14 x 14
            nn.ConvTranspose2d(width, 24, 4, 2, 1), nn.GroupNorm(8, 24), nn.ReLU(),  # 28 x 28
            nn.Conv2d(24, 1, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2),  # 14 x 14
            nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),  # 7 x 7
            nn.Conv2d(64, 128, 3, 2, 1), nn.LeakyReLU(0.2),  # 4 x 4
            nn.Flatten(), nn.Linear(128 * 16, 1),
        )  # fmt: skip

    def loss(self, images: Images) -> Float[Tensor, ""]:
        """The sum of both players' losses, whose gradient is each one's own: neither learns by the other's loss."""
        real = to_signal(images).requires_grad_()
        fake = self.generator(torch.randn(len(real), CODE))
        score = self.discriminator(real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        penalty = GAMMA / 2 * slope.square().flatten(1).sum(1).mean()
        discriminated = F.softplus(-score).mean() + F.softplus(self.discriminator(fake.detach())).mean() + penalty
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        generated = F.softplus(-functional_call(self.discriminator, fixed, fake)).mean()
        return discriminated + generated

    @torch.no_grad()
    def sample(self, n: int) -> Images:
        return to_bytes(self.generator(torch.randn(n, CODE)))
