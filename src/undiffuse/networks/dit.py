"""A diffusion transformer: attention over patches; scales, shifts and gates come from the condition (adaLN-zero).

After Peebles & Xie (2023), "Scalable Diffusion Models with Transformers". Cross-attention to context tokens is as in
PixArt-alpha (Chen et al. 2023); rotary positions are those of Su et al. (2021), one share of the features per axis.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undiffuse.networks.attention import attend

Sample = Float[Tensor, "batch channels *spatial"]
Tokens = Float[Tensor, "batch length width"]
Rotation = tuple[Float[Tensor, "length pairs"], Float[Tensor, "length pairs"]]

AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
POSITIONS = ("sin-cos", "rope")
WAYS = ("adaln", "in-context", "cross-attention")


def sinusoidal(values: Float[Tensor, " batch"], width: int, frequency_shift: int = 0) -> Float[Tensor, "batch width"]:
    """Cosines, then sines, of `values` at the frequencies exp(-log(10000) i / (width / 2 - frequency_shift)).

    In float32 or better: levels up to 1000 are told apart by less than half precision resolves.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    steps = torch.arange(width // 2, device=values.device, dtype=wide)
    # divided last, as everyone does: at level 1000 an ulp of a frequency is 1e-4 of an angle
    frequencies = torch.exp(-math.log(10000) * steps / (width // 2 - frequency_shift))
    angles = values.to(wide)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def axis_angles(
    sizes: Sequence[int], count: int, trained: int | None, device: torch.device
) -> list[Float[Tensor, "size count"]]:
    """Along each axis of a grid of patches, coordinate times frequency, the frequencies being 10000^(-i / count).

    sizes: patches along each axis; trained: patches along an axis in training, whose range (0 to trained) the
    coordinates 0, 1, 2, ... are stretched or squeezed into; None leaves them as they are.
    """
    # Apple's devices have no float64
    wide = torch.float32 if device.type == "mps" else torch.float64
    frequencies = 10000.0 ** (-torch.arange(count, device=device, dtype=wide) / count)
    coordinates = [torch.arange(size, device=device, dtype=wide) for size in sizes]
    if trained is not None:
        coordinates = [c * (trained / size) for c, size in zip(coordinates, sizes, strict=True)]
    return [c[:, None] * frequencies for c in coordinates]


def over_grid(per_axis: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, "length features"]:
    """Features along each axis (n_a, f_a) -> features of each patch of the grid (n_1 n_2 ..., f_1 + f_2 + ...)."""
    sizes = [len(features) for features in per_axis]
    shapes = [[size if other == axis else 1 for other in range(len(sizes))] for axis, size in enumerate(sizes)]
    spread = [f.reshape(*shape, -1).expand(*sizes, -1) for f, shape in zip(per_axis, shapes, strict=True)]
    return torch.cat(spread, -1).flatten(0, -2)


def sin_cos_positions(
    sizes: Sequence[int], width: int, trained: int | None, device: torch.device
) -> Float[Tensor, "length width"]:
    """Fixed position features: an equal share of the width for each axis, the last axis first, sines before cosines.

    With the last axis first, an image's first half encodes the column, as in MAE (He et al. 2021) and DiT.
    """
    angles = axis_angles(sizes, width // (2 * len(sizes)), trained, device)
    features = over_grid([torch.cat([a.sin(), a.cos()], 1) for a in angles])  # the first axis first
    return features.reshape(len(features), len(sizes), -1).flip(1).flatten(1)


def rotary_positions(sizes: Sequence[int], head_width: int, trained: int | None, device: torch.device) -> Rotation:
    """Cosine and sine of the angle by which each pair of a head's features is turned at each patch.

    Each axis has head_width // (2 * axes) pairs; features that are left over are not turned.
    """
    angles = over_grid(axis_angles(sizes, head_width // (2 * len(sizes)), trained, device))
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "batch heads length head"], rotation: Rotation) -> Float[Tensor, "batch heads length head"]:
    """Turns the pairs (x_i, x_{i + pairs}) by their angles, so that q . k depends on differences of positions only."""
    cos, sin = rotation
    first, second, rest = x.split([cos.shape[-1], cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos, rest.to(cos.dtype)], -1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """softmax(q k / sqrt(head width)) v over all tokens, then a projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tokens, rotation: Rotation | None = None) -> Tokens:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        out: Tensor = self.project(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Attention whose keys and values come from other tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.project = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tokens, context: Float[Tensor, "batch others width"]) -> Tokens:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.project(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention, cross-attention where there are context tokens to read, and an MLP; each is added to what came in.

    The first and the last see norm(x) (1 + scale) + shift and are multiplied by a gate, all of it linear in the
    embedding: adaLN-zero. Starts as the identity.
    """

    def __init__(
        self, width: int, heads: int, cross: bool, expansion: int, epsilon: float, mlp_epsilon: float, dropout: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, epsilon, elementwise_affine=False)
        self.mlp_norm = nn.LayerNorm(width, mlp_epsilon, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads)
        self.cross = CrossAttention(width, heads) if cross else None
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU("tanh"), nn.Linear(expansion * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tokens,
        embedding: Float[Tensor, "batch width"],
        context: Float[Tensor, "batch others width"] | None = None,
        rotation: Rotation | None = None,
    ) -> Tokens:
        """embedding: already through its SiLU, which all blocks share."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(embedding)[:, None].chunk(6, -1)
        h = self.attention(torch.addcmul(shift, self.norm(x), 1 + scale), rotation)
        x = torch.addcmul(x, gate, self.dropout(h))
        if self.cross is not None and context is not None:
            x = x + self.dropout(self.cross(self.norm(x), context))
        h = self.mlp(torch.addcmul(mlp_shift, self.mlp_norm(x), 1 + mlp_scale))
        return torch.addcmul(x, mlp_gate, self.dropout(h))


def _initialise(module: nn.Module, how: str) -> None:
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            if how == "xavier":
                nn.init.xavier_uniform_(linear.weight)
            elif how == "normal":
                nn.init.normal_(linear.weight, std=0.02)
            else:
                nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


def _check(given: Mapping[str, object]) -> None:
    """Raises: ValueError for an argument of DiT that is wrong by itself."""
    counts = ("channels", "width", "depth", "heads", "patch", "expansion", "frequencies", "size", "context")
    for name, least in [*((name, 1) for name in counts), ("frequency_shift", 0), ("condition_channels", 0)]:
        value = given[name]
        if value is None and name in ("size", "context"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")
    choices = {"positions": POSITIONS, "vector_by": WAYS, "tokens_by": WAYS, "dimensions": tuple(AXES)}
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {given[name]!r}")


class DiT(nn.Module):
    """network(x, c_noise, vector=None, tokens=None, image=None) -> tensor of x's shape, or of twice the channels.

    channels: of the data; width: of a token, shared by `heads`; depth: blocks; patch: side of the cube of elements that
    is one token. positions: "sin-cos", features added to the tokens, or "rope", rotations of queries and keys; size:
    the side of the samples in training, in elements, whose range of positions other sizes are stretched into; None for
    plain coordinates. context: width of the condition `tokens` (B, L, context), None where there are none.

    vector_by, tokens_by: how a condition enters. "adaln": added to the embedding of c_noise (tokens as their mean);
    "in-context": tokens before the patches, without a position; "cross-attention": read in each block.

    expansion: of the MLP; frequencies, frequency_shift: of the sinusoidal embedding of c_noise; epsilon: of the norms,
    and mlp_epsilon of those before the MLPs where it is another (in diffusers); dropout: of what a block adds;
    learned_variance: twice the channels come out; condition_channels: of the condition `image`, which is concatenated
    to x; dimensions: axes of a sample after its channels, 1 to 3; checkpointing: blocks are computed again in the
    backward pass instead of being kept.

    Every axis must be divisible by patch; sizes and aspects are free otherwise. The output is 0 at the start.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        *,
        positions: str = "sin-cos",
        size: int | None = None,
        context: int | None = None,
        vector_by: str = "adaln",
        tokens_by: str = "cross-attention",
        expansion: int = 4,
        frequencies: int = 256,
        frequency_shift: int = 0,
        epsilon: float = 1e-6,
        mlp_epsilon: float | None = None,
        dropout: float = 0.0,
        learned_variance: bool = False,
        condition_channels: int = 0,
        dimensions: int = 2,
        checkpointing: bool = False,
    ) -> None:
        _check(locals())
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, {heads}, not {width}")
        if positions == "sin-cos" and width % (2 * dimensions):
            raise ValueError(f"width must be a multiple of {2 * dimensions} for sin-cos positions, not {width}")
        if positions == "rope" and width // heads < 2 * dimensions:
            raise ValueError(f"a head must be {2 * dimensions} or more wide to be rotated, not {width // heads}")
        if size is not None and size % patch:
            raise ValueError(f"size must be a multiple of patch, {patch}, not {size}")
        if frequencies % 2 or frequencies // 2 <= frequency_shift:
            raise ValueError(f"frequencies must be even and above {2 * frequency_shift}, not {frequencies}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        mlp_epsilon = epsilon if mlp_epsilon is None else mlp_epsilon
        if not min(epsilon, mlp_epsilon) > 0:
            raise ValueError(f"epsilon and mlp_epsilon must be above 0, not {epsilon} and {mlp_epsilon}")
        self.channels, self.condition_channels, self.context = channels, condition_channels, context
        self.learned_variance, self.out_channels = learned_variance, channels * (2 if learned_variance else 1)
        self.embedding_width, self.divisor, self.dimensions = width, patch, dimensions
        self.head_width, self.positions, self.trained = width // heads, positions, size and size // patch
        self.vector_by, self.tokens_by = vector_by, tokens_by
        self.frequencies, self.frequency_shift = frequencies, frequency_shift
        self.checkpointing = checkpointing

        cross = vector_by == "cross-attention" or (context is not None and tokens_by == "cross-attention")
        self.patches = nn.Linear((channels + condition_channels) * patch**dimensions, width)
        self.project = nn.Linear(context, width) if context is not None else None
        self.embed = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        blocks = [Block(width, heads, cross, expansion, epsilon, mlp_epsilon, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, epsilon, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, self.out_channels * patch**dimensions)

        _initialise(self, "xavier")
        _initialise(self.embed, "normal")
        for block in blocks:  # last, so that nothing undoes the zeros
            _initialise(block.modulation, "zero")
            if block.cross is not None:
                _initialise(block.cross.project, "zero")
        _initialise(self.modulation, "zero")
        _initialise(self.head, "zero")

    def check_shape(self, channels: int, *spatial: int) -> None:
        """Raises: ValueError unless samples of this shape fit, naming the allowed sizes."""
        axes = AXES[self.dimensions]
        if len(spatial) != len(axes):
            raise ValueError(f"the DiT was made for samples of channels, {', '.join(axes)}, not {(channels, *spatial)}")
        if channels != self.channels:
            raise ValueError(f"the DiT was made for {self.channels} channels, not {channels}")
        for name, size in zip(axes, spatial, strict=True):
            if size < 1 or size % self.divisor:
                below = size // self.divisor * self.divisor
                near = [str(s) for s in (below, below + self.divisor) if s > 0]
                raise ValueError(
                    f"the {name} must be a multiple of {self.divisor} for this DiT, not {size}: use {' or '.join(near)}"
                )

    def _with_image(self, x: Sample, image: Tensor | None) -> Float[Tensor, "batch more *spatial"]:
        """x and the image in its channels; zeros stand for none."""
        if image is None:
            image = x.new_zeros(1, self.condition_channels, *[1] * self.dimensions).expand(len(x), -1, *x.shape[2:])
        elif not self.condition_channels:
            raise ValueError("this DiT takes no image: make it with condition_channels")
        elif image.ndim != x.ndim or image.shape[1] != self.condition_channels:
            raise ValueError(f"image must be (B, {self.condition_channels}, *spatial), not {tuple(image.shape)}")
        elif any(given not in (1, size) for given, size in zip(image.shape[2:], x.shape[2:], strict=True)):
            raise ValueError(
                f"image must be of size {tuple(x.shape[2:])} or 1 along an axis, not {tuple(image.shape[2:])}"
            )
        return torch.cat([x, image.to(x.dtype).expand(-1, -1, *x.shape[2:])], 1)

    def _tokens(self, tokens: Float[Tensor, "batch length context"] | None, x: Sample) -> Tokens | None:
        """The context tokens at the width of the patches; None where there are none."""
        if tokens is None:
            return None
        if self.project is None:
            raise ValueError("this DiT takes no tokens: make it with context, their width")
        if tokens.shape[-1] != self.context:
            raise ValueError(f"tokens must be {self.context} wide, not {tokens.shape[-1]}")
        return self.project(tokens.to(x.dtype)) if tokens.shape[1] else None

    def _patchify(self, x: Sample) -> Tokens:
        """(B, C, n_1 p, n_2 p, ...) -> (B, n_1 n_2 ..., C p p ...): a linear map of it is a convolution of stride p."""
        axes = range(self.dimensions)
        split = [part for size in x.shape[2:] for part in (size // self.divisor, self.divisor)]
        order = [0, *(2 + 2 * a for a in axes), 1, *(3 + 2 * a for a in axes)]
        return x.reshape(*x.shape[:2], *split).permute(order).flatten(1 + self.dimensions).flatten(1, -2)

    def _unpatchify(self, tokens: Tokens, spatial: Sequence[int]) -> Sample:
        """(B, n_1 n_2 ..., p p ... C), channels last within a patch as DiT has them -> (B, C, n_1 p, n_2 p, ...)."""
        axes, patches = range(self.dimensions), [size // self.divisor for size in spatial]
        x = tokens.reshape(len(tokens), *patches, *[self.divisor] * self.dimensions, self.out_channels)
        order = [0, 1 + 2 * self.dimensions, *(i for a in axes for i in (1 + a, 1 + self.dimensions + a))]
        return x.permute(order).reshape(len(tokens), self.out_channels, *spatial)

    def forward(
        self,
        x: Sample,
        c_noise: Float[Tensor, " batch"],
        vector: Float[Tensor, "batch embedding"] | None = None,
        tokens: Float[Tensor, "batch length context"] | None = None,
        image: Float[Tensor, "batch condition_channels ..."] | None = None,
    ) -> Float[Tensor, "batch out_channels *spatial"]:
        """vector: (B, width); tokens: (B, L, context); image: (B, condition_channels, ...), of x's size or 1 an axis.

        Raises: ValueError for what does not fit, or was not declared.
        """
        self.check_shape(*x.shape[1:])
        if vector is not None and vector.shape[-1] != self.embedding_width:
            raise ValueError(f"vector must be {self.embedding_width} wide, not {vector.shape[-1]}")
        spatial = x.shape[2:]
        sizes = [size // self.divisor for size in spatial]
        embedding = self.embed(sinusoidal(c_noise, self.frequencies, self.frequency_shift).to(x.dtype))
        entering: dict[str, list[Tensor]] = {way: [] for way in WAYS}
        if vector is not None:
            entering[self.vector_by].append(vector.to(x.dtype)[:, None])
        if (projected := self._tokens(tokens, x)) is not None:
            entering[self.tokens_by].append(projected)
        for added in entering["adaln"]:
            embedding = embedding + added.mean(1)
        embedding = F.silu(embedding)
        context = torch.cat(entering["cross-attention"], 1) if entering["cross-attention"] else None

        # under autocast the linear map is in half precision, but the sum of all blocks keeps the sample's
        h = self.patches(self._patchify(self._with_image(x, image))).to(x.dtype)
        rotation = None
        if self.positions == "sin-cos":
            h = h + sin_cos_positions(sizes, self.embedding_width, self.trained, x.device).to(x.dtype)
        before = sum(added.shape[1] for added in entering["in-context"])
        if self.positions == "rope":
            wide = torch.promote_types(x.dtype, torch.float32)
            cos, sin = (part.to(wide) for part in rotary_positions(sizes, self.head_width, self.trained, x.device))
            rotation = F.pad(cos, (0, 0, before, 0), value=1.0), F.pad(sin, (0, 0, before, 0))
        if before:
            h = torch.cat([*(added.to(x.dtype) for added in entering["in-context"]), h], 1)

        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            if again:
                h = checkpoint(block, h, embedding, context, rotation, use_reentrant=False)
            else:
                h = block(h, embedding, context, rotation)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, -1)
        return self._unpatchify(self.head(torch.addcmul(shift, self.norm(h[:, before:]), 1 + scale)), spatial)
