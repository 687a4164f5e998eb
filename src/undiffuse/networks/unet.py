"""A U-Net: residual blocks with adaptive group normalisation, optional attention, up and down by factors of 2.

After Ho et al. (2020) and Dhariwal & Nichol (2021), entered through pixel-unshuffling, which trades resolution for
channels where the convolutions would be slow and thin.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Image = Float[Tensor, "batch channels height width"]


def sinusoidal(values: Float[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    """Sines and cosines of `values` at geometric frequencies from 1 towards 1e-4 (Vaswani et al. 2017)."""
    frequencies = torch.exp(torch.arange(width // 2, device=values.device) * (-math.log(10000) / (width // 2)))
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) whose scale and shift may differ per sample (Dhariwal & Nichol 2021).

    Statistics in float32 or better, then one multiply-add per element that holds normalisation and modulation alike;
    on CPU several times faster than the native operator, which also leaves the modulation to a second pass.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.epsilon = math.gcd(32, channels), epsilon
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Image, modulation: Float[Tensor, "batch double"] | None = None) -> Image:
        """modulation: (B, 2 C), what is added to a scale of 1, and the shift."""
        _, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        count, size = height * width * channels // self.groups, channels // self.groups

        def per_channel(pixels: Tensor) -> Tensor:  # the mean over a group, repeated for each of its channels
            total = pixels.permute(0, 2, 3, 1).flatten(1, 2).sum(1, dtype=wide).unflatten(1, (self.groups, -1)).sum(-1)
            mean: Tensor = (total / count).repeat_interleave(size, 1)
            return mean

        mean = per_channel(x)
        pivot = mean.to(x.dtype)
        # centred before it is squared, so that a large mean costs no digits; the rest is what rounding the mean left
        centred, rest = x - pivot[:, :, None, None], mean - pivot.to(wide)
        scale = self.weight * torch.rsqrt((per_channel(centred * centred) - rest * rest).clamp(min=0) + self.epsilon)
        shift = self.bias - rest * scale
        if modulation is not None:
            extra_scale, extra_shift = modulation.to(wide).chunk(2, 1)
            scale, shift = scale * (1 + extra_scale), shift * (1 + extra_scale) + extra_shift
        return torch.addcmul(shift[:, :, None, None].to(x.dtype), centred, scale[:, :, None, None].to(x.dtype))


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), the second norm modulated by the embedding; starts as the identity."""

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = GroupNorm(channels), GroupNorm(out_channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Image, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, "batch out height width"]:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.norm_out(h, self.modulation(embedding))
        out: Tensor = self.skip(x) + self.conv_out(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """x + projection(softmax(q k / sqrt(d)) v) over all positions; starts as identity."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
        if channels % self.heads:
            raise ValueError(
                f"attention over {channels} channels cannot be shared by {self.heads} heads: change head_width"
            )
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Image) -> Image:
        batch, channels, height, width = x.shape
        # (B, 3C, H, W) channels-last is (B, HW, 3C) in memory, so this is a view
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, channels)
        out: Tensor = x + self.projection(h.permute(0, 3, 1, 2))
        return out


class Stage(nn.Module):
    """A residual block and, where asked for, attention."""

    def __init__(
        self, channels: int, out_channels: int, embedding: int, dropout: float, attention: bool, head_width: int
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out_channels, embedding, dropout)
        self.attention = Attention(out_channels, head_width) if attention else None

    def forward(self, x: Image, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, "batch out height width"]:
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """network(x, c_noise, vector=None) -> tensor of x's shape.

    channels: of the data, any number; width: channels at the first level; multipliers: of the width, one per level,
    each level half the size of the one before; blocks: residual blocks per level; attention: for each level, whether
    its blocks attend; patch: p x p pixels become channels at the entrance; embedding: width of the vector that carries
    c_noise and the condition `vector` (B, embedding); dropout: in the residual blocks; head_width: of attention.

    Height and width must be divisible by patch * 2^(levels - 1). The output is 0 at the start. Convolutions run
    channels-last.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[bool] | bool = False,
        patch: int = 1,
        embedding: int | None = None,
        dropout: float = 0.0,
        head_width: int = 32,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "width": width, "blocks": blocks, "patch": patch, "head_width": head_width}
        for name, size in [*sizes.items(), *(("multipliers", m) for m in multipliers)]:
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be whole numbers from 1, not {size!r}")
        if not multipliers:
            raise ValueError("multipliers must name at least one level")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if width % 2:
            raise ValueError(f"width must be even, for sines and cosines, not {width}")
        attends = [attention] * len(multipliers) if isinstance(attention, bool) else list(attention)
        if len(attends) != len(multipliers):
            raise ValueError(f"attention must say yes or no for each of {len(multipliers)} levels, not {len(attends)}")
        self.channels, self.patch, self.width = channels, patch, width
        self.divisor = patch * 2 ** (len(multipliers) - 1)
        self.embedding_width = embedding or 4 * width
        self.embed = nn.Sequential(
            nn.Linear(width, self.embedding_width), nn.SiLU(), nn.Linear(self.embedding_width, self.embedding_width)
        )

        def stage(inside: int, outside: int, attend: bool) -> Stage:
            return Stage(inside, outside, self.embedding_width, dropout, attend, head_width)

        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        now, skips = width, [width]
        self.down = nn.ModuleList()
        for level, (multiplier, attend) in enumerate(zip(multipliers, attends, strict=True)):
            if level:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
            for _ in range(blocks):
                self.down.append(stage(now, width * multiplier, attend))
                now = width * multiplier
                skips.append(now)
        self.middle = nn.ModuleList([stage(now, now, attends[-1]), stage(now, now, False)])
        self.up = nn.ModuleList()
        for level, (multiplier, attend) in reversed(list(enumerate(zip(multipliers, attends, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(stage(now + skips.pop(), width * multiplier, attend))
                now = width * multiplier
            if level:  # to the width of the level above before its pixels, four times as many, are worked on
                self.up.append(nn.Conv2d(now, width * multipliers[level - 1], 3, padding=1))
                now = width * multipliers[level - 1]
        self.head_norm = GroupNorm(now)
        self.head = _zero(nn.Conv2d(now, channels * patch**2, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def check_shape(self, channels: int, height: int, width: int) -> None:
        """Raises: ValueError unless samples of this shape fit, naming the allowed sizes."""
        if channels != self.channels:
            raise ValueError(f"the U-Net was made for {self.channels} channels, not {channels}")
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % self.divisor:
                below = size // self.divisor * self.divisor
                near = [str(s) for s in (below, below + self.divisor) if s]
                raise ValueError(
                    f"the {name} must be a multiple of {self.divisor} for this U-Net, not {size}: "
                    f"use {' or '.join(near)}"
                )

    def forward(
        self, x: Image, c_noise: Float[Tensor, " batch"], vector: Float[Tensor, "batch embedding"] | None = None
    ) -> Image:
        self.check_shape(*x.shape[1:])
        embedding = self.embed(sinusoidal(c_noise, self.width).to(x.dtype))
        embedding = F.silu(embedding if vector is None else embedding + vector)
        x = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        skips = [x := self.stem(x)]
        for module in self.down:
            skips.append(x := module(x, embedding) if isinstance(module, Stage) else module(x))
        for module in self.middle:
            x = module(x, embedding)
        for module in self.up:
            if isinstance(module, Stage):
                x = module(torch.cat([x, skips.pop()], 1), embedding)
            else:
                x = module(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.head(F.silu(self.head_norm(x))), self.patch)
