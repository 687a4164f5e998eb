"""A residual multi-layer perceptron for samples that are vectors: points of a plane, rows of a table, features."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Vectors = Float[Tensor, "batch channels"]


def sinusoidal(values: Float[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    """Cosines, then sines, of `values` at geometric frequencies from 1 towards 1e-4 (Vaswani et al. 2017).

    In float32 or better: levels up to 1000 are told apart by less than half precision resolves.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    steps = torch.arange(width // 2, device=values.device, dtype=wide)
    angles = values.to(wide)[:, None] * torch.exp(steps * (-math.log(10000) / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], 1)


class Block(nn.Module):
    """x + leave(act(enter(norm(x) (1 + scale) + shift))), both linear in the embedding; starts as the identity."""

    def __init__(self, width: int, embedding: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.enter, self.leave = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Float[Tensor, "batch width"], embedding: Float[Tensor, "batch embedding"]) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, 1)
        h = self.enter(torch.addcmul(shift, self.norm(x), 1 + scale))
        out: Tensor = x + self.leave(self.dropout(F.silu(h)))
        return out


class MLP(nn.Module):
    """network(x, c_noise, vector=None) -> (B, channels), or twice the channels with learned_variance.

    channels: numbers in a sample (B, channels); width: of the layers between blocks; depth: blocks; embedding: width of
    what carries c_noise and the condition `vector` (B, embedding), by default `width`; expansion: of the layer inside a
    block; dropout: in it.

    The output is 0 at the start.
    """

    def __init__(
        self,
        channels: int = 2,
        width: int = 128,
        depth: int = 3,
        *,
        embedding: int | None = None,
        expansion: int = 2,
        dropout: float = 0.0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        embedding = width if embedding is None else embedding
        counts = {"channels": channels, "width": width, "depth": depth, "embedding": embedding, "expansion": expansion}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}")
        if width % 2:
            raise ValueError(f"width must be even, for sines and cosines, not {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.channels, self.learned_variance = channels, learned_variance
        self.out_channels = channels * (2 if learned_variance else 1)
        self.width, self.embedding_width = width, embedding
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, embedding, expansion, dropout) for _ in range(depth))
        self.head = nn.Linear(width, self.out_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def check_shape(self, channels: int, *spatial: int) -> None:
        """Raises: ValueError unless samples of this shape fit."""
        if spatial:
            raise ValueError(f"the MLP takes vectors (B, channels), not samples of shape {(channels, *spatial)}")
        if channels != self.channels:
            raise ValueError(f"the MLP was made for {self.channels} channels, not {channels}")

    def forward(
        self, x: Vectors, c_noise: Float[Tensor, " batch"], vector: Float[Tensor, "batch embedding"] | None = None
    ) -> Float[Tensor, "batch out_channels"]:
        """Raises: ValueError for an x or a vector of another width."""
        self.check_shape(*x.shape[1:])
        embedding = self.embed(sinusoidal(c_noise, self.width).to(x.dtype))
        if vector is not None:
            if vector.shape[-1] != self.embedding_width:
                raise ValueError(f"vector must be {self.embedding_width} wide, not {vector.shape[-1]}")
            embedding = embedding + vector.to(x.dtype)
        embedding = F.silu(embedding)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, embedding)
        out: Tensor = self.head(x)
        return out
