"""A classifier of noisy signals, images and volumes: the downward half of the U-Net, attention pooling, a linear head.

After the classifiers of Dhariwal & Nichol (2021, section 4.1): the downsampling trunk of their U-Net with an attention
pool at the end (Radford et al. 2021), here without positions in the pool, so that any size will do.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.networks.normalisation import GroupNorm
from undiffuse.networks.unet import (
    CONVOLUTIONS,
    MEMORY_FORMATS,
    Attention,
    Down,
    Feature,
    ResidualBlock,
    Stage,
    _as_sequence,
    _attend,
    _per_level,
    _unshuffled,
    _zero,
    check_fits,
    sinusoidal,
)


class AttentionPool(nn.Module):
    """One vector from all positions: attention whose query is their mean (Radford et al. 2021)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)

    def forward(self, x: Feature) -> Float[Tensor, "batch channels"]:
        sequence = _as_sequence(x)
        key, value = self.key_value(sequence).chunk(2, -1)
        return _attend(self.query(sequence.mean(1, keepdim=True)), key, value, self.heads)[:, 0]


class Encoder(nn.Module):
    """network(x, c_noise) -> logits (B, classes).

    channels: of the data; classes: how many; width: channels at the first level; multipliers: of the width, one per
    level, each level half the size of the one before; blocks: residual blocks per level; attention: for each level,
    whether its blocks attend; patch: p x p pixels become channels at the entrance; embedding: width of the vector that
    carries c_noise; dropout: in the residual blocks; head_width: of attention; dimensions: 1, 2 or 3 of space.

    Every side must be divisible by patch * 2^(levels - 1). The logits are 0 at the start.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[bool] | bool = False,
        *,
        patch: int = 1,
        embedding: int | None = None,
        dropout: float = 0.0,
        head_width: int = 32,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        if not isinstance(multipliers, Sequence) or not multipliers:
            raise ValueError(f"multipliers must be a list, one for each level, not {multipliers!r}")
        sizes = {"channels": channels, "classes": classes, "width": width, "blocks": blocks, "patch": patch}
        sizes |= {"head_width": head_width} | ({} if embedding is None else {"embedding": embedding})
        for name, size in [*sizes.items(), *(("multipliers", m) for m in multipliers)]:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be whole numbers from 1, not {size!r}")
        if dimensions not in CONVOLUTIONS:
            raise ValueError(f"dimensions must be one of {', '.join(map(str, CONVOLUTIONS))}, not {dimensions!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if width % 2:
            raise ValueError(f"width must be even, for sines and cosines, not {width}")
        widths = [width * multiplier for multiplier in multipliers]
        attends = _per_level("attention", attention, len(widths), whole=False)
        heads = [max(1, w // head_width) for w in widths]
        for w, count, used in zip(widths, heads, [*attends[:-1], True], strict=True):  # the pool is at the last level
            if used and w % count:
                raise ValueError(f"attention over {w} channels cannot be shared by {count} heads: change head_width")
        self.channels, self.classes, self.dimensions = channels, classes, dimensions
        self.patch, self.width, self.divisor = patch, width, patch * 2 ** (len(widths) - 1)
        self.embedding_width = 4 * width if embedding is None else embedding
        self.embed = nn.Sequential(
            nn.Linear(width, self.embedding_width), nn.SiLU(), nn.Linear(self.embedding_width, self.embedding_width)
        )
        self.stem = CONVOLUTIONS[dimensions](channels * patch**dimensions, width, 3, padding=1)
        self.down, now = nn.ModuleList(), width
        for level, outside in enumerate(widths):
            if level:
                self.down.append(Down(now, dimensions, pad_end=False))
            for _ in range(blocks):
                block = ResidualBlock(now, outside, self.embedding_width, dropout, "scale-shift", 32, 1e-5, dimensions)
                attend = Attention(outside, heads[level], 32, 1e-5) if attends[level] else None
                self.down.append(Stage(block, attend))
                now = outside
        self.norm, self.pool = GroupNorm(now), AttentionPool(now, heads[-1])
        self.head = _zero(nn.Linear(now, classes))
        self.to(memory_format=MEMORY_FORMATS[dimensions])  # type: ignore[call-overload]

    def check_shape(self, channels: int, *space: int) -> None:
        """Raises: ValueError unless samples of this shape fit, naming the allowed sizes."""
        check_fits("encoder", (self.channels, self.dimensions, self.divisor), channels, *space)

    def forward(self, x: Feature, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        self.check_shape(*x.shape[1:])
        embedding = F.silu(self.embed(sinusoidal(c_noise, self.width).to(x.dtype)))
        x = self.stem(_unshuffled(x, self.patch).contiguous(memory_format=MEMORY_FORMATS[self.dimensions]))
        for module in self.down:
            x = module(x, embedding)
        logits: Tensor = self.head(self.pool(self.norm(x, silu=True)))
        return logits
