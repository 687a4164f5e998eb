"""A pixel autoregressive model: each pixel's 256 probabilities given all pixels before it, row by row.

    log P(x) = sum_i log P(x_i | x_1 .. x_{i-1})

which is exact, with no bound and no noise. Two stacks of convolutions see what came before: the vertical one the rows
above, the horizontal one the row's own pixels to the left and what the vertical one says. Sampling takes one call for
each pixel. What each call needs of earlier ones is kept, so that all 784 together cost about one pass over a picture.

Reference: van den Oord et al. 2016, Conditional image generation with PixelCNN decoders, eq. 2 and figure 2; Salimans
et al. 2017, PixelCNN++ (the mixture of logistics); Ramachandran et al. 2017 (what is kept in sampling).
"""

import torch
import torch.nn.functional as F
from generative import logistic
from generative.model import PIXELS, SIDE, GenerativeModel, Images, PerImage, bits, to_bytes, to_signal
from jaxtyping import Float
from torch import Tensor, nn

REACH = 2  # rows above and columns beside, that a layer sees

Feature = Float[Tensor, "batch channels height width"]


def gated(x: Feature) -> Feature:
    """tanh of one half of the channels, times the sigmoid of the other."""
    value, gate = x.chunk(2, 1)
    return torch.tanh(value) * torch.sigmoid(gate)


class Layer(nn.Module):
    """One layer of both stacks. What lies before the pixels at hand is handed in: zeros, or what was kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vertical_conv = nn.Conv2d(width, 2 * width, (REACH + 1, 2 * REACH + 1), padding=(0, REACH))
        self.horizontal_conv = nn.Conv2d(width, 2 * width, (1, REACH + 1))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)

    def vertical(self, v: Feature, above: Feature) -> tuple[Feature, Feature]:
        """The rows of v (B, C, rows, W), with the REACH rows above them; and what the horizontal stack is told."""
        h = self.vertical_conv(torch.cat([above, v], 2))
        return v + gated(h), self.link(h)

    def horizontal(self, h: Feature, told: Feature, left: Feature) -> Feature:
        """The columns of h (B, C, rows, columns), with the REACH columns to the left of them."""
        return h + self.leave(gated(self.horizontal_conv(torch.cat([left, h], 3)) + told))


class PixelCNN(GenerativeModel):
    """Gated convolutions in two stacks, and at each pixel a mixture of discretised logistics."""

    evaluations = PIXELS
    learning_rate = 2e-3
    batch = 16  # every picture has 784 terms, and costs ten times as much

    def __init__(self, width: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.width = width
        # the second channel of a picture is 1, so that the border differs from a black pixel
        self.enter_vertical = nn.Conv2d(2, width, (1, 3), padding=(0, 1))
        self.enter_horizontal = nn.Conv2d(2, width, 1)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(width, logistic.PARAMETERS, 1))
        self.to(memory_format=torch.channels_last)  # faster on a CPU: a tenth

    def forward(self, x: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch parameters height width"]:
        """The parameters of each pixel's distribution, given the pixels before it."""
        marked = torch.cat([x, torch.ones_like(x)], 1)
        v = self.enter_vertical(F.pad(marked, (0, 0, 1, 0))[:, :, :-1])
        h = self.enter_horizontal(F.pad(marked, (1, 0))[..., :-1])
        above, left = v.new_zeros(*v.shape[:2], REACH, v.shape[3]), h.new_zeros(*h.shape[:3], REACH)
        for layer in self.layers:
            v, told = layer.vertical(v, above)
            h = layer.horizontal(h, told, left)
        return self.head(h)

    @torch.no_grad()
    def sample(self, n: int) -> Images:
        x = torch.zeros(n, 2, SIDE + 1, SIDE + 1)  # with a row above and a column to the left, which are no pixels
        x[:, 1, 1:, 1:] = 1
        above = [torch.zeros(n, self.width, REACH, SIDE) for _ in self.layers]
        for i in range(SIDE):
            v, told = self.enter_vertical(x[:, :, i : i + 1, 1:]), []
            for k, layer in enumerate(self.layers):
                seen = torch.cat([above[k], v], 2)
                v, heard = layer.vertical(v, above[k])
                above[k] = seen[:, :, 1:]
                told.append(heard)
            self._sample_row(x, i, told)
        return to_bytes(x[:, :1, 1:, 1:])

    def _sample_row(self, x: Float[Tensor, "batch 2 29 29"], i: int, told: list[Feature]) -> None:
        """Fill row i of x, from left to right."""
        left = [torch.zeros(len(x), self.width, 1, REACH) for _ in self.layers]
        for j in range(SIDE):
            h = self.enter_horizontal(x[:, :, i + 1 : i + 2, j : j + 1])
            for k, layer in enumerate(self.layers):
                seen = torch.cat([left[k], h], 3)
                h = layer.horizontal(h, told[k][..., j : j + 1], left[k])
                left[k] = seen[..., 1:]
            x[:, :1, i + 1 : i + 2, j + 1 : j + 2] = logistic.sample(self.head(h))

    def nats(self, images: Images) -> Float[Tensor, "batch 1 28 28"]:
        """-log P of each pixel given those before it."""
        x = to_signal(images)
        return -logistic.log_prob(x, self(x))

    def loss(self, images: Images) -> Float[Tensor, ""]:
        return bits(self.nats(images)).mean()

    @torch.no_grad()
    def bits_per_dim(self, images: Images) -> dict[str, PerImage]:
        return {"exact": bits(self.nats(images))}
