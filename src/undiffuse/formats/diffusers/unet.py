"""Their U-Nets, `UNet2DModel` and `UNet2DConditionModel`, and ours: options and names of weights, both ways.

Sources: `models/unets/unet_2d.py`, `unet_2d_condition.py` and `unet_2d_blocks.py` of diffusers 0.42.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from undiffuse.formats.diffusers.options import Options
from undiffuse.formats.diffusers.renaming import Names, on_paper
from undiffuse.networks.normalisation import GroupNorm

# what their classes do where config.json says nothing
_BOTH: dict[str, Any] = {
    "sample_size": None, "center_input_sample": False, "time_embedding_type": "positional", "time_embedding_dim": None,
    "freq_shift": 0, "flip_sin_to_cos": True, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "dropout": 0.0, "act_fn": "silu", "attention_head_dim": 8, "norm_num_groups": 32,
    "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "class_embed_type": None, "num_class_embeds": None,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        **_BOTH, "in_channels": 3, "out_channels": 3, "mid_block_type": "UNetMidBlock2D",
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896], "downsample_type": "conv", "upsample_type": "conv",
        "attn_norm_num_groups": None, "add_attention": True, "num_train_timesteps": None,
    },
    "UNet2DConditionModel": {
        **_BOTH, "in_channels": 4, "out_channels": 4, "mid_block_type": "UNetMidBlock2DCrossAttn",
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [320, 640, 1280, 1280], "only_cross_attention": False, "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None, "num_attention_heads": None,
        "use_linear_projection": False, "upcast_attention": False, "mid_block_only_cross_attention": None,
        "addition_embed_type_num_heads": 64, "dual_cross_attention": False, "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0, "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
        "class_embeddings_concat": False,
    },
}  # fmt: skip

# a kind of block -> (what its residual blocks are followed by, how it changes the size); "asked" is as an option says
DOWN = {
    "DownBlock2D": ("nothing", "conv"),
    "ResnetDownsampleBlock2D": ("nothing", "resnet"),
    "AttnDownBlock2D": ("attention", "asked"),
    "CrossAttnDownBlock2D": ("transformer", "conv"),
}
UP = {
    "UpBlock2D": ("nothing", "conv"),
    "ResnetUpsampleBlock2D": ("nothing", "resnet"),
    "AttnUpBlock2D": ("attention", "asked"),
    "CrossAttnUpBlock2D": ("transformer", "conv"),
}
MODULATIONS = {"default": "add", "scale_shift": "scale-shift"}
RESAMPLINGS = {"conv": "conv", "resnet": "residual"}

RESIDUAL = {
    "norm_in": "norm1", "conv_in": "conv1", "modulation": "time_emb_proj", "norm_out": "norm2", "conv_out": "conv2",
    "skip": "conv_shortcut", "conv": "conv",
}  # fmt: skip
ATTENTION = {"norm": ["group_norm"], "qkv": ["to_q", "to_k", "to_v"], "projection": ["to_out.0"]}
TRANSFORMER = {"norm": ["norm"], "enter": ["proj_in"], "leave": ["proj_out"]}
TRANSFORMER_BLOCK = {
    "norm_self": ["norm1"], "qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"], "projection": ["attn1.to_out.0"],
    "norm_cross": ["norm2"], "query": ["attn2.to_q"], "key_value": ["attn2.to_k", "attn2.to_v"],
    "projection_cross": ["attn2.to_out.0"], "norm_wide": ["norm3"], "widen": ["ff.net.0.proj"], "narrow": ["ff.net.2"],
}  # fmt: skip
LABEL = "class_embedding.weight"


class Model(NamedTuple):
    """One of their networks as ours: `network` is its name and arguments; labels: rows of its table of classes."""

    network: dict[str, Any]
    size: list[int] | None
    labels: int | None
    has_null: bool
    notes: tuple[str, ...] = ()


# -- their options as our arguments ------------------------------------------------------------------------------------


def read(kind: str, config: Mapping[str, Any]) -> Model:
    """A `UNet2DModel` or a `UNet2DConditionModel` as our U-Net. Raises: InputError naming what has no equal."""
    options = Options(kind, config, DEFAULTS[kind])
    take = options.take
    widths, notes = list(take("block_out_channels")), []
    options.require(all(w % widths[0] == 0 for w in widths), "block_out_channels", "not multiples of the first")
    network = {"name": "unet", **channels(options)}
    network |= {"width": widths[0], "multipliers": [w // widths[0] for w in widths]}
    network |= {"blocks": _one_for_all(options, "layers_per_block"), "embedding": take("time_embedding_dim")}
    network |= _stages(options, "attention" if kind == "UNet2DModel" else "transformer", len(widths))
    network |= {"groups": take("norm_num_groups"), "epsilon": take("norm_eps"), "dropout": take("dropout")}
    options.require(network["groups"] is not None, "norm_num_groups")
    options.require(take("act_fn") in ("silu", "swish"), "act_fn")
    options.require(take("freq_shift") in (0, 1), "freq_shift")
    network["frequency_shift"] = int(take("freq_shift"))
    options.require(take("downsample_padding") in (0, 1), "downsample_padding")
    network["pad_end"] = take("downsample_padding") == 0
    options.require(take("resnet_time_scale_shift") in MODULATIONS, "resnet_time_scale_shift")
    network["modulation"] = MODULATIONS.get(take("resnet_time_scale_shift"))
    take("flip_sin_to_cos")  # `time_embedding.flipped` does it in the weights
    if kind == "UNet2DModel":
        network |= _own_attention(options, widths, network)
    else:
        network |= _cross_attention(options, len(widths))
        if take("upcast_attention"):
            notes.append("upcast_attention=True has no effect here: attention runs in the network's own precision.")
    size, labels = take("sample_size"), take("num_class_embeds")
    options.check()
    return Model(
        {name: value for name, value in network.items() if value is not None},
        [size, size] if isinstance(size, int) else size and list(size), labels, False, tuple(notes),
    )  # fmt: skip


def channels(options: Options) -> dict[str, Any]:
    """What goes in beside the sample is a condition; twice the channels out are a learned variance."""
    inside, outside = options.take("in_channels"), options.take("out_channels") or options.take("in_channels")
    learned = outside == 2 * inside
    options.require(learned or outside <= inside, "out_channels", f"of in_channels={inside}")
    data = inside if learned else outside
    return {"channels": data, "condition_channels": inside - data, "learned_variance": learned}


def _one_for_all(options: Options, name: str) -> Any:
    """The value that an option has at every level."""
    value = options.take(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        options.require(len(set(value)) == 1, name)
        return value[0]
    return value


def _stages(options: Options, kind: str, levels: int) -> dict[str, Any]:
    """Which levels attend, and how the size is changed between levels: the same on the way down and up."""
    asked = {"DOWN": "conv", "UP": "conv"}
    if kind == "attention":
        asked = {"DOWN": options.take("downsample_type"), "UP": options.take("upsample_type")}
    down_types, up_types = list(options.take("down_block_types")), list(options.take("up_block_types"))
    for name, types, known in (("down_block_types", down_types, DOWN), ("up_block_types", up_types, UP)):
        fit = all(t in known and known[t][0] in ("nothing", kind) for t in types) and len(types) == levels
        options.require(fit, name)
    if options.refused:
        return {}
    down, up = [DOWN[t] for t in down_types], [UP[t] for t in reversed(up_types)]
    attends = [follows == kind for follows, _ in down]
    options.require(
        attends == [follows == kind for follows, _ in up], "up_block_types", "not the mirror of down_block_types"
    )
    changes = {asked["DOWN"] if how == "asked" else how for _, how in down[:-1]}
    changes |= {asked["UP"] if how == "asked" else how for _, how in up[1:]}
    changes = changes or {"conv"}
    for name in ("down_block_types", "up_block_types"):
        options.require(len(changes) == 1 and changes <= RESAMPLINGS.keys(), name, f"resampling by {sorted(changes)}")
    return {"attention": attends, "resample": RESAMPLINGS.get(min(changes))}


def _own_attention(options: Options, widths: Sequence[int], network: Mapping[str, Any]) -> dict[str, Any]:
    """The attention of a `UNet2DModel`."""
    middle, head = options.take("add_attention"), options.take("attention_head_dim")
    attends = [w for w, used in zip(widths, network.get("attention", []), strict=False) if used]
    attends += [widths[-1]] if middle else []
    options.require(head is None or all(w % head == 0 for w in attends), "attention_head_dim", f"of {attends} channels")
    groups, usual = options.take("attn_norm_num_groups"), options.take("norm_num_groups")
    if groups is None and options.take("resnet_time_scale_shift") != "default":
        groups = "none"
    options.require(not middle or groups in (None, usual), "attn_norm_num_groups", "of the middle block")
    options.take("num_train_timesteps")  # for the time_embedding_type "learned" alone
    return {"middle_attention": middle} | ({"heads": 1} if head is None else {"head_width": head})


def _cross_attention(options: Options, levels: int) -> dict[str, Any]:
    """The transformers of a `UNet2DConditionModel`; what it calls attention_head_dim is the number of heads."""
    heads, depth = options.take("attention_head_dim"), options.take("transformer_layers_per_block")
    heads = options.take("num_attention_heads") or heads
    whole = isinstance(depth, int) or all(isinstance(d, int) for d in depth)
    options.require(whole, "transformer_layers_per_block")
    backwards = options.take("reverse_transformer_layers_per_block")
    forwards = [depth] * levels if isinstance(depth, int) else list(depth)
    options.require(backwards in (None, forwards[::-1]), "reverse_transformer_layers_per_block")
    for name in ("only_cross_attention", "mid_block_only_cross_attention"):
        value = options.take(name)
        options.require(not (any(value) if isinstance(value, Sequence) else value), name)
    options.take("use_linear_projection")  # the same numbers, as a matrix or as a 1x1 convolution
    options.take("addition_embed_type_num_heads")  # for addition_embed_type alone
    context = _one_for_all(options, "cross_attention_dim")
    return {"context": context, "depth": depth, "heads": heads, "middle_attention": True}


# -- names of weights --------------------------------------------------------------------------------------------------


def names(network: Mapping[str, Any]) -> Names:
    """Our name of a weight -> theirs, for a U-Net of these arguments."""
    modules, transformer = _modules(len(network["multipliers"]), network["blocks"]), network.get("context") is not None

    def theirs(name: str) -> list[str]:
        module, rest = name.rpartition(".")[0], name.rpartition(".")[2]
        while module not in modules:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
        *inner, parameter = rest.split(".")
        return [".".join([modules[module], *part, parameter]) for part in _inside(inner, transformer)]

    return theirs


def _modules(levels: int, blocks: int) -> dict[str, str]:
    """Our modules -> theirs."""
    found = {
        "embed.0": "time_embedding.linear_1", "embed.2": "time_embedding.linear_2", "stem": "conv_in",
        "middle.0.block": "mid_block.resnets.0", "middle.0.attention": "mid_block.attentions.0",
        "middle.1.block": "mid_block.resnets.1", "head_norm": "conv_norm_out", "head": "conv_out",
    }  # fmt: skip
    down = up = 0
    for level in range(levels):
        if level:  # ours changes the size before a level on the way down, and after it on the way up; theirs after both
            found[f"down.{down}"] = f"down_blocks.{level - 1}.downsamplers.0"
            down += 1
        for i in range(blocks):
            found[f"down.{down}.block"] = f"down_blocks.{level}.resnets.{i}"
            found[f"down.{down}.attention"] = f"down_blocks.{level}.attentions.{i}"
            down += 1
        for i in range(blocks + 1):
            found[f"up.{up}.block"] = f"up_blocks.{level}.resnets.{i}"
            found[f"up.{up}.attention"] = f"up_blocks.{level}.attentions.{i}"
            up += 1
        found[f"up.{up}"] = f"up_blocks.{level}.upsamplers.0"
        up += 1
    return found


def _inside(inner: list[str], transformer: bool) -> list[list[str]]:
    """The path of a weight within a block -> theirs."""
    if not inner:
        return [[]]
    if inner[0] == "blocks":
        return [["transformer_blocks", inner[1], part] for part in TRANSFORMER_BLOCK[inner[2]]]
    if inner[0] in RESIDUAL:
        return [[RESIDUAL[inner[0]]]]
    return [[part] for part in (TRANSFORMER if transformer else ATTENTION)[inner[0]]]


OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def renewed(name: str) -> str:
    """The name of a weight as of today; checkpoints from before 2023 call those of attention otherwise."""
    *path, parameter = name.split(".")
    old = "attentions" in path and path[-1] in OLD_NAMES
    return ".".join([*path[:-1], OLD_NAMES[path[-1]], parameter]) if old else name


# -- our arguments as their options ------------------------------------------------------------------------------------


def refused(network: Mapping[str, Any]) -> list[str]:
    """The arguments of a U-Net, complete, that have no equal there."""
    found = [
        f"network.{name}={network[name]!r}"
        for name, allowed in (("patch", (1,)), ("resample", tuple(RESAMPLINGS.values())), ("dimensions", (2,)))
        if network[name] not in allowed
    ]
    if found:
        return found
    attends, heads, widths = _attention(network)
    if network["context"] is None:
        alone = all(count == 1 for count in heads)
        if not alone and len({w // count for w, count in zip(widths, heads, strict=True)}) > 1:
            found.append(f"network.heads={heads} over {widths} channels (heads of several widths)")
    else:
        if network["middle_attention"] is False or not (network["middle_attention"] or attends[-1]):
            found.append("network.middle_attention=False with network.context")
        if network["resample"] == "residual" and any(attends) and len(attends) > 1:
            found.append("network.resample='residual' with network.context")
    groups = {module.groups for module in on_paper(network).modules() if isinstance(module, GroupNorm)}
    if len(groups) > 1:
        found.append(f"network.groups={network['groups']} ({', '.join(map(str, sorted(groups)))} in different norms)")
    return found


def _attention(network: Mapping[str, Any]) -> tuple[list[bool], list[int], list[int]]:
    """Which levels attend; then the heads and the channels of those that do, the middle being the last."""
    widths = [network["width"] * multiplier for multiplier in network["multipliers"]]
    levels, given, asked = len(widths), network["heads"], network["attention"]
    attends = [asked] * levels if isinstance(asked, bool) else list(asked)
    heads = [max(1, w // network["head_width"]) for w in widths] if given is None else given
    heads = [heads] * levels if isinstance(heads, int) else list(heads)
    middle = attends[-1] if network["middle_attention"] is None else network["middle_attention"]
    used = [level for level in range(levels) if attends[level]] + ([levels - 1] if middle else [])
    return attends, [heads[level] for level in used], [widths[level] for level in used]


def config(network: Mapping[str, Any], size: Sequence[int], labels: int | None) -> dict[str, Any]:
    """Their config.json for a U-Net of these arguments, complete, that `refused` has nothing against."""
    attends, heads, widths = _attention(network)
    ways = {ours: theirs for theirs, ours in RESAMPLINGS.items()}
    kind, way = "attention" if network["context"] is None else "transformer", ways[network["resample"]]
    channels = network["channels"]
    found: dict[str, Any] = {
        "_class_name": "UNet2DModel" if kind == "attention" else "UNet2DConditionModel",
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": channels + network["condition_channels"],
        "out_channels": 2 * channels if network["learned_variance"] else channels,
        "block_out_channels": [network["width"] * multiplier for multiplier in network["multipliers"]],
        "layers_per_block": network["blocks"],
        "down_block_types": [_block_type(DOWN, kind, attend, way) for attend in attends],
        "up_block_types": [_block_type(UP, kind, attend, way) for attend in reversed(attends)],
        "time_embedding_dim": network["embedding"] or 4 * network["width"],
        "flip_sin_to_cos": True,
        "freq_shift": network["frequency_shift"],
        "downsample_padding": 0 if network["pad_end"] else 1,
        "dropout": network["dropout"],
        "norm_num_groups": math.gcd(network["groups"], network["width"]),
        "norm_eps": network["epsilon"],
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in MODULATIONS.items()}[network["modulation"]],
        "num_class_embeds": labels,
    }
    if kind == "attention":
        alone = all(count == 1 for count in heads)
        return found | {
            "attention_head_dim": None if alone else widths[0] // heads[0],
            "add_attention": len(heads) > sum(attends),
            "attn_norm_num_groups": found["norm_num_groups"],
            "downsample_type": way,
            "upsample_type": way,
        }
    depth, levels, used = network["depth"], len(attends), iter(heads)
    return found | {
        "cross_attention_dim": network["context"],
        "attention_head_dim": [next(used) if attend else heads[-1] for attend in attends],
        "transformer_layers_per_block": [depth] * levels if isinstance(depth, int) else list(depth),
        "use_linear_projection": True,
    }


def _block_type(known: Mapping[str, tuple[str, str]], kind: str, attends: bool, way: str) -> str:
    fit = [name for name, (follows, _) in known.items() if follows == (kind if attends else "nothing")]
    return next((name for name in fit if known[name][1] in (way, "asked")), fit[0])
