"""A mixture of discretised logistic distributions: probabilities of the 256 values of a pixel.

    P(x) = sum_k w_k [S((x + h - m_k) / s_k) - S((x - h - m_k) / s_k)],      S(u) = 1 / (1 + exp(-u)),  h = 1 / 255

for x on the grid of 256 values in [-1, 1]; the bins at both ends are open, so that the probabilities add up to 1.

Reference: Salimans et al. 2017, PixelCNN++, section 2.1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

COMPONENTS = 5
PARAMETERS = 3 * COMPONENTS  # a weight, a mean and a scale of each
HALF_BIN = 1 / 255
LEAST_LOG_SCALE = -7.0  # a quarter of a bin: finer scales are one value

Parameters = Float[Tensor, "batch parameters height width"]
Signal = Float[Tensor, "batch 1 height width"]


def _parts(parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of the weights, means and logarithms of the scales, each (B, K, H, W)."""
    logits, mean, log_scale = parameters.chunk(3, 1)
    return logits.log_softmax(1), mean, log_scale.clamp(min=LEAST_LOG_SCALE)


def log_prob(x: Signal, parameters: Parameters) -> Signal:
    """log P(x) of each pixel, in nats.

    S(b) - S(a) = S(b) S(-a) (1 - exp(a - b)), where nothing cancels: b - a = 2 h / s whatever the mean.
    """
    log_weight, mean, log_scale = _parts(parameters)
    inverse = torch.exp(-log_scale)
    below_top = F.logsigmoid((x + HALF_BIN - mean) * inverse)
    above_bottom = F.logsigmoid((mean - x + HALF_BIN) * inverse)
    width = torch.log(-torch.expm1(-2 * HALF_BIN * inverse))
    first, last = x < -1 + HALF_BIN, x > 1 - HALF_BIN
    inside = below_top.masked_fill(last, 0) + above_bottom.masked_fill(first, 0) + width.masked_fill(first | last, 0)
    return (log_weight + inside).logsumexp(1, keepdim=True)


def sample(parameters: Parameters) -> Signal:
    """A value of each pixel: a component by its weight, a logistic draw, and the nearest of the 256 values."""
    log_weight, mean, log_scale = _parts(parameters)
    gumbel = -torch.log(-torch.log(torch.rand_like(log_weight).clamp(min=1e-20)))
    chosen = (log_weight + gumbel).argmax(1, keepdim=True)
    u = torch.rand_like(chosen, dtype=mean.dtype).clamp(1e-6, 1 - 1e-6)
    x = mean.gather(1, chosen) + log_scale.gather(1, chosen).exp() * torch.logit(u)
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def mean(parameters: Parameters) -> Signal:
    """The mean of the components' centres, each within the range of the pixels."""
    log_weight, centre, _ = _parts(parameters)
    return (log_weight.exp() * centre.clamp(-1, 1)).sum(1, keepdim=True)
