"""A U-Net for signals, images and volumes: residual blocks told the noise level, self- and cross-attention, skips.

After Ho et al. (2020), Dhariwal & Nichol (2021, "ADM") and Rombach et al. (2022, "Stable Diffusion"), which are all
choices of its arguments (`undiffuse.networks.published`). It may be entered through pixel-unshuffling, which trades
resolution for channels where the convolutions would be slow and thin.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undiffuse.networks.attention import attend
from undiffuse.networks.normalisation import GroupNorm, like

Feature = Float[Tensor, "batch channels *space"]
Changed = Float[Tensor, "batch out *after"]  # of other channels, or another size
Embedding = Float[Tensor, "batch embedding"]
Tokens = Float[Tensor, "batch length context"]

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
MODULATIONS = ("scale-shift", "add")
RESAMPLINGS = ("conv", "residual", "narrow")


def sinusoidal(values: Float[Tensor, " batch"], width: int, frequency_shift: int = 0) -> Float[Tensor, "batch width"]:
    """Cosines and sines of `values` at geometric frequencies from 1 towards 1e-4 (Vaswani et al. 2017).

    frequency_shift: 1 makes 1e-4 the last frequency (Ho et al. 2020), 0 the one after the last.
    """
    half = width // 2
    wide = torch.promote_types(values.dtype, torch.float32)
    # divided last, as everyone does: at level 1000 an ulp of a frequency is 1e-4 of an angle
    steps = torch.arange(half, device=values.device, dtype=wide)
    frequencies = torch.exp(-math.log(10000) * steps / (half - frequency_shift))
    angles = values.to(wide)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), told the embedding at the second norm; starts as the identity.

    modulation: "scale-shift" modulates that norm, "add" adds to what it normalises. resample: "down" or "up" halves or
    doubles both branches after the first activation (Brock et al. 2019).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        modulation: str,
        groups: int,
        epsilon: float,
        dimensions: int,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dimensions]
        self.resample, self.scales = resample, modulation == "scale-shift"
        self.norm_in, self.norm_out = GroupNorm(channels, epsilon, groups), GroupNorm(out_channels, epsilon, groups)
        self.conv_in = conv(channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out_channels if self.scales else out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zero(conv(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else conv(channels, out_channels, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return POOLS[x.ndim - 2](x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Feature, embedding: Embedding, tokens: Tokens | None = None) -> Changed:
        h = self.conv_in(self._resampled(self.norm_in(x, silu=True)))
        told = self.modulation(embedding)
        h = self.norm_out(h, told, silu=True) if self.scales else self.norm_out(h + like(told, h), silu=True)
        out: Tensor = self.skip(self._resampled(x)) + self.conv_out(self.dropout(h))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Float[Tensor, "batch positions channels"]:
    """softmax(q k / sqrt(d)) v per head, of queries (B, N, C), keys and values (B, M, C)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return attend(q, k, v).transpose(1, 2).flatten(2)


def _as_sequence(x: Feature) -> Float[Tensor, "batch positions channels"]:
    return x.flatten(2).transpose(1, 2)  # of channels-last memory a view


class Attention(nn.Module):
    """x + projection(attention over all positions); starts as the identity."""

    def __init__(self, channels: int, heads: int, groups: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels, epsilon, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = _zero(nn.Linear(channels, channels))

    def forward(self, x: Feature, tokens: Tokens | None = None) -> Feature:
        q, k, v = self.qkv(_as_sequence(self.norm(x))).chunk(3, -1)
        out: Tensor = x + self.projection(_attend(q, k, v, self.heads)).transpose(1, 2).reshape(x.shape)
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to tokens and a gated feed-forward layer (Shazeer 2020), each after a norm.

    Without tokens the cross-attention adds nothing.
    """

    def __init__(self, channels: int, context: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_self, self.norm_cross, self.norm_wide = (nn.LayerNorm(channels) for _ in range(3))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.projection = nn.Linear(channels, channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(context, 2 * channels, bias=False)
        self.projection_cross = nn.Linear(channels, channels)
        self.widen, self.narrow = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch positions channels"], tokens: Tokens | None) -> Tensor:
        q, k, v = self.qkv(self.norm_self(x)).chunk(3, -1)
        x = x + self.projection(_attend(q, k, v, self.heads))
        if tokens is not None:
            key, value = self.key_value(tokens).chunk(2, -1)
            x = x + self.projection_cross(_attend(self.query(self.norm_cross(x)), key, value, self.heads))
        value, gate = self.widen(self.norm_wide(x)).chunk(2, -1)
        out: Tensor = x + self.narrow(self.dropout(value * F.gelu(gate)))
        return out


class Transformer(nn.Module):
    """x + leave(blocks(enter(norm(x)))) over all positions; starts as the identity (Rombach et al. 2022)."""

    def __init__(self, channels: int, context: int, depth: int, heads: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, 1e-6, groups)  # an epsilon of its own, as published
        self.enter, self.leave = nn.Linear(channels, channels), _zero(nn.Linear(channels, channels))
        self.blocks = nn.ModuleList(TransformerBlock(channels, context, heads, dropout) for _ in range(depth))

    def forward(self, x: Feature, tokens: Tokens | None = None) -> Feature:
        h = self.enter(_as_sequence(self.norm(x)))
        for block in self.blocks:
            h = block(h, tokens)
        out: Tensor = x + self.leave(h).transpose(1, 2).reshape(x.shape)
        return out


class Stage(nn.Module):
    """A residual block and, where asked for, attention."""

    def __init__(self, block: ResidualBlock, attention: nn.Module | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Feature, embedding: Embedding, tokens: Tokens | None = None) -> Changed:
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x, tokens)


class Down(nn.Module):
    """Half the resolution by a strided convolution.

    pad_end: pad after the last position alone (Ho et al. 2020, in TensorFlow), not on both sides.
    """

    def __init__(self, channels: int, dimensions: int, pad_end: bool) -> None:
        super().__init__()
        self.pad_end = pad_end
        self.conv = CONVOLUTIONS[dimensions](channels, channels, 3, stride=2, padding=0 if pad_end else 1)

    def forward(self, x: Feature, embedding: Embedding, tokens: Tokens | None = None) -> Changed:
        out: Tensor = self.conv(F.pad(x, (0, 1) * (x.ndim - 2)) if self.pad_end else x)
        return out


class Up(nn.Module):
    """Twice the resolution by repeating, then a convolution."""

    def __init__(self, channels: int, out_channels: int, dimensions: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dimensions](channels, out_channels, 3, padding=1)

    def forward(self, x: Feature, embedding: Embedding, tokens: Tokens | None = None) -> Changed:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _per_level(name: str, value: Any, levels: int, whole: bool) -> list[Any]:
    """One value for all levels, or one for each: whole numbers from 1, or truth values."""
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{name} must be one value or one for each of {levels} levels, not {len(values)}")
    for one in values:
        if isinstance(one, bool) is whole or not isinstance(one, int) or (whole and one < 1):
            raise ValueError(f"{name} must be {'whole numbers from 1' if whole else 'true or false'}, not {one!r}")
    return values


def check_fits(network: str, made_for: tuple[int, int, int], channels: int, *space: int) -> None:
    """Raises: ValueError unless a sample of this shape fits a network made for (channels, axes, divisor of sides)."""
    own_channels, dimensions, divisor = made_for
    if channels != own_channels:
        raise ValueError(f"the {network} was made for {own_channels} channels, not {channels}")
    if len(space) != dimensions:
        raise ValueError(f"the {network} was made for {' x '.join(AXES[dimensions])}, not for {len(space)} axes")
    for name, size in zip(AXES[dimensions], space, strict=True):
        if size < 1 or size % divisor:
            below = size // divisor * divisor
            near = [str(s) for s in (below, below + divisor) if s]
            raise ValueError(
                f"the {name} must be a multiple of {divisor} for this {network}, not {size}: use {' or '.join(near)}"
            )


class UNet(nn.Module):
    """network(x, c_noise, vector=None, tokens=None, image=None) -> tensor of x's shape.

    channels: of the data, any number; width: channels at the first level; multipliers: of the width, one per level,
    each level half the size of the one before; blocks: residual blocks per level; attention: for each level, whether
    its blocks attend; patch: p x p pixels become channels at the entrance; embedding: width of the vector that carries
    c_noise and the condition `vector` (B, embedding); dropout: in the residual blocks.

    head_width: of attention, or heads: how many, per level. middle_attention: by default as at the last level.
    context: the width of the condition `tokens` (B, L, context); attention then is a transformer of `depth` blocks with
    cross-attention. condition_channels: of the condition `image`, which is laid beside x (B, c, *space).

    modulation: "scale-shift" (ADM) or "add" (DDPM, Stable Diffusion). resample: "conv" (strided, and after repeating),
    "residual" (ADM), or "narrow", as conv but with the width of the level above before its pixels, four times as many,
    are worked on. groups, epsilon: of group normalisation (gcd(groups, channels) groups). frequency_shift: see
    `sinusoidal`. pad_end: see `Down`.

    learned_variance: twice the channels come out, the second half for the variance. dimensions: 1, 2 or 3 of space.
    checkpointing: activations of the blocks are computed again in the backward pass, which saves memory.

    Every side must be divisible by patch * 2^(levels - 1). The output is 0 at the start. Convolutions run
    channels-last.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[bool] | bool = False,
        *,
        patch: int = 1,
        embedding: int | None = None,
        dropout: float = 0.0,
        head_width: int = 32,
        heads: Sequence[int] | int | None = None,
        middle_attention: bool | None = None,
        context: int | None = None,
        depth: Sequence[int] | int = 1,
        condition_channels: int = 0,
        modulation: str = "scale-shift",
        resample: str = "conv",
        groups: int = 32,
        epsilon: float = 1e-5,
        frequency_shift: int = 0,
        pad_end: bool = False,
        learned_variance: bool = False,
        dimensions: int = 2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(multipliers, Sequence):
            raise ValueError(f"multipliers must be a list, one for each level, not {multipliers!r}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, not {epsilon}")
        levels = len(multipliers)
        sizes = {"channels": channels, "width": width, "blocks": blocks, "patch": patch, "head_width": head_width}
        sizes |= {"groups": groups} | ({} if context is None else {"context": context})
        sizes |= {} if embedding is None else {"embedding": embedding}
        for name, size in [*sizes.items(), *(("multipliers", m) for m in multipliers)]:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be whole numbers from 1, not {size!r}")
        for name, chosen, allowed in (
            ("modulation", modulation, MODULATIONS), ("resample", resample, RESAMPLINGS),
            ("dimensions", dimensions, tuple(CONVOLUTIONS)), ("frequency_shift", frequency_shift, (0, 1)),
        ):  # fmt: skip
            if chosen not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {chosen!r}")
        if not multipliers:
            raise ValueError("multipliers must name at least one level")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if width % 2 or width // 2 <= frequency_shift:
            raise ValueError(f"width must be even and over {2 * frequency_shift}, for sines and cosines, not {width}")
        if condition_channels < 0:
            raise ValueError(f"condition_channels must be 0 or more, not {condition_channels}")
        attends = _per_level("attention", attention, levels, whole=False)
        widths = [width * multiplier for multiplier in multipliers]
        shared = (
            [max(1, w // head_width) for w in widths]
            if heads is None
            else _per_level("heads", heads, levels, whole=True)
        )
        depths = _per_level("depth", depth, levels, whole=True)
        attends_between = attends[-1] if middle_attention is None else middle_attention
        if context is not None and not any([*attends, attends_between]):
            raise ValueError("context needs attention at some level, and there is none")
        if modulation == "add" and all(math.gcd(groups, w) == w for w in widths):
            raise ValueError(
                f"modulation 'add' needs groups of two channels or more, because the normalisation of one alone takes "
                f"away what was added: use groups under {max(widths)}, not {groups}"
            )
        for w, count, used in zip(
            [*widths, widths[-1]], [*shared, shared[-1]], [*attends, attends_between], strict=True
        ):
            if used and w % count:
                raise ValueError(
                    f"attention over {w} channels cannot be shared by {count} heads: change head_width or heads"
                )
        self.channels, self.condition_channels, self.context = channels, condition_channels, context
        self.learned_variance, self.out_channels = learned_variance, 2 * channels if learned_variance else channels
        self.patch, self.width, self.dimensions, self.checkpointing = patch, width, dimensions, checkpointing
        self.frequency_shift = frequency_shift
        self.divisor = patch * 2 ** (levels - 1)
        self.embedding_width = 4 * width if embedding is None else embedding
        self.embed = nn.Sequential(
            nn.Linear(width, self.embedding_width), nn.SiLU(), nn.Linear(self.embedding_width, self.embedding_width)
        )

        def block(inside: int, outside: int, change: str | None = None) -> ResidualBlock:
            return ResidualBlock(
                inside, outside, self.embedding_width, dropout, modulation, groups, epsilon, dimensions, change
            )

        def stage(inside: int, level: int, attend: bool) -> Stage:
            outside = widths[level]
            if not attend:
                return Stage(block(inside, outside), None)
            if context is None:
                return Stage(block(inside, outside), Attention(outside, shared[level], groups, epsilon))
            transformer = Transformer(outside, context, depths[level], shared[level], dropout, groups)
            return Stage(block(inside, outside), transformer)

        conv = CONVOLUTIONS[dimensions]
        self.stem = conv((channels + condition_channels) * patch**dimensions, width, 3, padding=1)
        now, skips = width, [width]
        self.down = nn.ModuleList()
        for level in range(levels):
            if level:
                self.down.append(block(now, now, "down") if resample == "residual" else Down(now, dimensions, pad_end))
                skips.append(now)
            for _ in range(blocks):
                self.down.append(stage(now, level, attends[level]))
                now = widths[level]
                skips.append(now)
        self.middle = nn.ModuleList([stage(now, levels - 1, attends_between), stage(now, levels - 1, False)])
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            for _ in range(blocks + 1):
                self.up.append(stage(now + skips.pop(), level, attends[level]))
                now = widths[level]
            if level:
                after = widths[level - 1] if resample == "narrow" else now
                self.up.append(block(now, now, "up") if resample == "residual" else Up(now, after, dimensions))
                now = after
        self.head_norm = GroupNorm(now, epsilon, groups)
        self.head = _zero(conv(now, self.out_channels * patch**dimensions, 3, padding=1))
        self.to(memory_format=MEMORY_FORMATS[dimensions])  # type: ignore[call-overload]

    def check_shape(self, channels: int, *space: int) -> None:
        """Raises: ValueError unless samples of this shape fit, naming the allowed sizes."""
        check_fits("U-Net", (self.channels, self.dimensions, self.divisor), channels, *space)

    def forward(
        self,
        x: Feature,
        c_noise: Float[Tensor, " batch"],
        vector: Embedding | None = None,
        tokens: Tokens | None = None,
        image: Float[Tensor, "batch condition_channels ..."] | None = None,
    ) -> Changed:
        """image: (B, condition_channels, *space), or one value for all of space; without one, 0."""
        self.check_shape(*x.shape[1:])
        if vector is not None and vector.shape[1:] != (self.embedding_width,):
            raise ValueError(f"the vector must be (batch, {self.embedding_width}), not {tuple(vector.shape)}")
        if tokens is not None:
            if self.context is None:
                raise ValueError("the U-Net was made without context, but is given tokens")
            if tokens.ndim != 3 or tokens.shape[2] != self.context:
                raise ValueError(f"tokens must be (batch, length, {self.context}), not {tuple(tokens.shape)}")
            tokens = tokens.to(x.dtype)
        embedding = self.embed(sinusoidal(c_noise, self.width, self.frequency_shift).to(x.dtype))
        embedding = F.silu(embedding if vector is None else embedding + vector.to(x.dtype))
        x = _unshuffled(self._beside(x, image), self.patch).contiguous(memory_format=MEMORY_FORMATS[self.dimensions])
        skips = [x := self.stem(x)]
        for module in self.down:
            skips.append(x := self._run(module, x, embedding, tokens))
        for module in self.middle:
            x = self._run(module, x, embedding, tokens)
        for module in self.up:
            if isinstance(module, Stage):
                x = torch.cat([x, skips.pop()], 1)
            x = self._run(module, x, embedding, tokens)
        return _shuffled(self.head(self.head_norm(x, silu=True)), self.patch)

    def _beside(self, x: Tensor, image: Tensor | None) -> Tensor:
        """x with the condition's channels after its own."""
        if not self.condition_channels:
            if image is not None:
                raise ValueError("the U-Net was made without condition_channels, but is given an image")
            return x
        if image is None:
            image = x.new_zeros(())
        elif image.shape[1] != self.condition_channels or image.shape[2:] not in (x.shape[2:], (1,) * self.dimensions):
            raise ValueError(
                f"the image condition must be of {self.condition_channels} channels and size {tuple(x.shape[2:])} "
                f"as the sample, not {tuple(image.shape[1:])}"
            )
        return torch.cat([x, image.to(x.dtype).expand(len(x), self.condition_channels, *x.shape[2:])], 1)

    def _run(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            again: Tensor = checkpoint(module, *inputs, use_reentrant=False)
            return again
        out: Tensor = module(*inputs)
        return out


def _unshuffled(x: Tensor, patch: int) -> Tensor:
    """(B, C, p h, ...) -> (B, C p^d, h, ...), the pixels of a patch as channels (Shi et al. 2016)."""
    if patch == 1:
        return x
    dimensions = x.ndim - 2
    x = x.reshape(*x.shape[:2], *(side for size in x.shape[2:] for side in (size // patch, patch)))
    order = [0, 1, *range(3, 3 + 2 * dimensions, 2), *range(2, 2 + 2 * dimensions, 2)]
    return x.permute(order).flatten(1, 1 + dimensions)


def _shuffled(x: Tensor, patch: int) -> Tensor:
    """The inverse of `_unshuffled`."""
    if patch == 1:
        return x
    dimensions = x.ndim - 2
    space = [size * patch for size in x.shape[2:]]
    x = x.unflatten(1, (-1, *[patch] * dimensions))
    order = [0, 1, *(axis for i in range(dimensions) for axis in (2 + dimensions + i, 2 + i))]
    return x.permute(order).reshape(*x.shape[:2], *space)
