"""A normalising flow: an invertible network between pictures and Gaussian noise, with an exact density.

    log p(y) = log N(f(y); 0, I) + log |det df/dy|

Bytes are spread over their bins by uniform noise, u = (x + U[0, 1)) / 256, and mapped to the whole line by
y = logit(a + (1 - 2 a) u). The density of u is exact; averaged over the noise it bounds the probability of the bytes:
log P(x) >= E log p(u) - 784 log 256.

Reference: Dinh et al. 2017, RealNVP, eq. 3, 7 and section 4.1; Kingma & Dhariwal 2018, Glow, section 3.2; Theis et al.
2016, section 3.1.
"""

import math

import torch
import torch.nn.functional as F
from generative.model import PIXELS, GenerativeModel, Images, PerImage, bits
from jaxtyping import Float
from torch import Tensor, nn

MARGIN = 1e-6  # a, above
CENTRE, SPREAD = -4.0, 4.0  # of the logits of digits, about: the flow starts from numbers of order 1
LARGEST_LOG_SCALE = 2.0

Feature = Float[Tensor, "batch channels height width"]
WithLogDet = tuple[Feature, PerImage]


def squeeze(x: Feature) -> Feature:
    """Each 2 x 2 pixels become channels."""
    return F.pixel_unshuffle(x, 2)


class Mixing(nn.Module):
    """y = W x over channels, at each pixel; log |det| = height width log |det W|. Starts as a rotation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels)).Q)

    def forward(self, x: Feature) -> WithLogDet:
        log_det = x.shape[2] * x.shape[3] * torch.linalg.slogdet(self.weight).logabsdet
        return F.conv2d(x, self.weight[:, :, None, None]), log_det.expand(len(x))

    def inverse(self, y: Feature) -> Feature:
        return F.conv2d(y, torch.linalg.inv(self.weight)[:, :, None, None])


class Coupling(nn.Module):
    """One half stays, and says by a network how the other is scaled and shifted; starts as the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, channels, 3, 1, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        enter, between = nn.Conv2d(channels // 2, width, 3, 1, 1), nn.Conv2d(width, width, 1)
        self.network = nn.Sequential(enter, nn.SiLU(), between, nn.SiLU(), last)

    def _scale_and_shift(self, kept: Feature) -> tuple[Feature, Feature]:
        log_scale, shift = self.network(kept).chunk(2, 1)
        return LARGEST_LOG_SCALE * torch.tanh(log_scale / LARGEST_LOG_SCALE), shift

    def forward(self, x: Feature) -> WithLogDet:
        kept, changed = x.chunk(2, 1)
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, changed * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Feature) -> Feature:
        kept, changed = y.chunk(2, 1)
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, (changed - shift) * torch.exp(-log_scale)], 1)


class Flow(GenerativeModel):
    """Two levels, each a squeeze and steps of mixing and coupling; half of what the first gives is left as it is."""

    evaluations = 1
    learning_rate = 2e-3
    batch = 32  # a picture costs several times as much as in the others

    def __init__(self, width: int = 88, steps: int = 8) -> None:
        super().__init__()

        def level(channels: int) -> nn.ModuleList:
            pairs = [(Mixing(channels), Coupling(channels, width)) for _ in range(steps)]
            return nn.ModuleList(layer for pair in pairs for layer in pair)

        self.fine, self.coarse = level(4), level(8)  # of 14 x 14 and of 7 x 7 pixels
        self.to(memory_format=torch.channels_last)  # faster on a CPU: a fifth

    def transform(self, y: Float[Tensor, "batch 1 28 28"]) -> tuple[Float[Tensor, "batch 784"], PerImage]:
        """The noise that y stands for, and log |det dz/dy|."""
        log_det = y.new_zeros(len(y))
        h = squeeze(y)
        for layer in self.fine:
            h, change = layer(h)
            log_det = log_det + change
        done, h = h.chunk(2, 1)
        h = squeeze(h)
        for layer in self.coarse:
            h, change = layer(h)
            log_det = log_det + change
        return torch.cat([done.flatten(1), h.flatten(1)], 1), log_det

    def inverse(self, z: Float[Tensor, "batch 784"]) -> Float[Tensor, "batch 1 28 28"]:
        """The y that stands for this noise."""
        done, h = z[:, : PIXELS // 2].unflatten(1, (2, 14, 14)), z[:, PIXELS // 2 :].unflatten(1, (8, 7, 7))
        for layer in reversed(self.coarse):
            h = layer.inverse(h)
        h = torch.cat([done, F.pixel_shuffle(h, 2)], 1)
        for layer in reversed(self.fine):
            h = layer.inverse(h)
        return F.pixel_shuffle(h, 2)

    def log_prob(self, images: Images) -> PerImage:
        """The lower bound of log P(bytes) in nats, by one draw of the noise that spreads them."""
        u = MARGIN + (1 - 2 * MARGIN) * (images + torch.rand(images.shape)) / 256
        y = (torch.logit(u) - CENTRE) / SPREAD
        z, log_det = self.transform(y)
        gaussian = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        # d logit / du = 1 / (u (1 - u))
        to_line = -(torch.log(u) + torch.log1p(-u)).flatten(1).sum(1) + PIXELS * math.log((1 - 2 * MARGIN) / SPREAD)
        return gaussian + log_det + to_line - PIXELS * math.log(256)

    def loss(self, images: Images) -> Float[Tensor, ""]:
        return bits(-self.log_prob(images)).mean()

    @torch.no_grad()
    def sample(self, n: int) -> Images:
        u = torch.sigmoid(CENTRE + SPREAD * self.inverse(torch.randn(n, PIXELS)))
        return (256 * (u - MARGIN) / (1 - 2 * MARGIN)).nan_to_num(0).floor().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def bits_per_dim(self, images: Images) -> dict[str, PerImage]:
        return {"exact for spread bytes": bits(-self.log_prob(images))}
