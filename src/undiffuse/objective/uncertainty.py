"""A learned weight of noise levels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.prediction import Level
from undiffuse.schedule import along_batch


class Uncertainty(nn.Module):
    """u(log_snr), with which a loss becomes loss / e^u + u: at best e^u is the mean loss at each level.

    So every level weighs alike, however large its loss is (Karras et al. 2024, EDM2, eq. 14 and 15). One linear layer
    over random Fourier features of the level; it starts at u = 0.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", torch.randn(features, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=generator))
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, level: Level) -> Float[Tensor, " batch"]:
        """u of each sample, on the device of the parameters."""
        # log(sigma / alpha) / 4 varies by about 1, as the features expect
        position = along_batch(-level.log_snr.clamp(-40, 40) / 8, self.frequencies)
        features = math.sqrt(2) * torch.cos(position[:, None] * 2 * math.pi * self.frequencies + self.phases)
        u: Tensor = self.linear(features)
        return u[:, 0]
