"""Their `DiTTransformer2DModel` and our DiT: options and names of weights, both ways.

Sources: `transformers/dit_transformer_2d.py`, `attention.py` and `embeddings.py` in `models/` of diffusers 0.42.
There every block has a copy of the embedder of time and class; in published checkpoints they are equal.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from undiffuse.errors import InputError
from undiffuse.formats.diffusers.options import Options
from undiffuse.formats.diffusers.renaming import Names, State
from undiffuse.formats.diffusers.unet import Model, channels

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "dropout": 0.0, "norm_num_groups": 32, "attention_bias": True, "sample_size": 32, "patch_size": 2,
    "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "upcast_attention": False,
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-5,
    # of Transformer2DModel, as which the checkpoints of the DiT paper are published
    "only_cross_attention": False, "double_self_attention": False, "use_linear_projection": False,
    "attention_type": "default", "use_additional_conditions": None,
}  # fmt: skip
EPSILON = 1e-6  # theirs has it in all norms but those before the MLPs, and the code of the DiT paper in all
EMBEDDER = "transformer_blocks.0.norm1.emb"
LABEL = f"{EMBEDDER}.class_embedder.embedding_table.weight"

MODULES = {
    "patches": ["pos_embed.proj"],
    "embed.0": [f"{EMBEDDER}.timestep_embedder.linear_1"],
    "embed.2": [f"{EMBEDDER}.timestep_embedder.linear_2"],
    "modulation": ["proj_out_1"],
    "head": ["proj_out_2"],
}
BLOCK = {
    "modulation": ["norm1.linear"],
    "attention.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attention.project": ["attn1.to_out.0"],
    "mlp.0": ["ff.net.0.proj"],
    "mlp.2": ["ff.net.2"],
}


def read(kind: str, config: Mapping[str, Any]) -> Model:
    """A `DiTTransformer2DModel` as our DiT. Raises: InputError naming what has no equal."""
    options = Options(kind, config, DEFAULTS)
    take, heads, notes = options.take, options.take("num_attention_heads"), []
    network = {"name": "dit", **channels(options), "width": heads * take("attention_head_dim"), "heads": heads}
    network |= {"depth": take("num_layers"), "patch": take("patch_size"), "size": take("sample_size")}
    network |= {"dropout": take("dropout"), "epsilon": EPSILON, "frequency_shift": 1}
    options.require(not take("use_additional_conditions"), "use_additional_conditions")
    take("norm_num_groups")  # of group normalisation, which a DiT has not
    if take("upcast_attention"):
        notes.append("upcast_attention=True has no effect here: attention runs in the network's own precision.")
    network["mlp_epsilon"] = take("norm_eps")
    options.require(isinstance(take("sample_size"), int), "sample_size")
    labels = take("num_embeds_ada_norm")
    options.require(labels is not None, "num_embeds_ada_norm")
    options.check()
    return Model(network, [network["size"]] * 2, labels + 1, True, tuple(notes))


def without_copies(theirs: State, source: str) -> State:
    """Their weights with the first block's embedder alone. Raises: InputError where another block has another one."""
    kept: State = {}
    for name, value in theirs.items():
        first = re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", f"{EMBEDDER}.", name)
        if first == name:
            kept[name] = value
        elif first not in theirs or not torch.equal(value, theirs[first]):
            raise InputError(f"{source}: {name} is not the same as {first}; a DiT here has one embedder for all blocks")
    return kept


def with_copies(theirs: State, network: Mapping[str, Any]) -> State:
    """Their weights with the first block's embedder in every block, and the entrance as a convolution."""
    patch, first = network["patch"], [name for name in theirs if name.startswith(f"{EMBEDDER}.")]
    copies = {
        name.replace("transformer_blocks.0.", f"transformer_blocks.{block}."): theirs[name].clone()
        for name in first
        for block in range(1, network["depth"])
    }
    entrance = theirs["pos_embed.proj.weight"].unflatten(1, (-1, patch, patch))
    return theirs | copies | {"pos_embed.proj.weight": entrance}


def names(network: Mapping[str, Any]) -> Names:
    """Our name of a weight -> theirs."""

    def theirs(name: str) -> list[str]:
        module, _, parameter = name.rpartition(".")
        if not module.startswith("blocks."):
            return [f"{part}.{parameter}" for part in MODULES[module]]
        _, block, inner = module.split(".", 2)
        return [f"transformer_blocks.{block}.{part}.{parameter}" for part in BLOCK[inner]]

    return theirs


def refused(network: Mapping[str, Any], size: Sequence[int]) -> list[str]:
    """The arguments of a DiT, complete, that have no equal there."""
    allowed = {
        "positions": ("sin-cos",), "size": (None, size[0]), "context": (None,), "vector_by": ("adaln",),
        "expansion": (4,), "frequencies": (256,), "frequency_shift": (1,), "epsilon": (EPSILON,),
        "dimensions": (2,),
    }  # fmt: skip
    found = [f"network.{name}={network[name]!r}" for name, values in allowed.items() if network[name] not in values]
    return found + ([] if size[0] == size[1] else [f"samples of {size[0]} x {size[1]} (a DiT is square there)"])


def config(network: Mapping[str, Any], size: Sequence[int], labels: int) -> dict[str, Any]:
    """Their config.json for a DiT of these arguments, complete, that `refused` has nothing against."""
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": network["heads"],
        "attention_head_dim": network["width"] // network["heads"],
        "in_channels": network["channels"] + network["condition_channels"],
        "out_channels": network["channels"] * (2 if network["learned_variance"] else 1),
        "num_layers": network["depth"],
        "dropout": network["dropout"],
        "sample_size": size[0],
        "patch_size": network["patch"],
        "num_embeds_ada_norm": labels - 1,
        "norm_eps": network["epsilon"] if network["mlp_epsilon"] is None else network["mlp_epsilon"],
    }
