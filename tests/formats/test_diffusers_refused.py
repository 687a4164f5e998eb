"""Options of networks of diffusers without an equal: each is named, all of them at once."""

import pytest

from formats import peers
from undiffuse import InputError
from undiffuse.formats.diffusers import dit, read, unet

OWN = {
    "sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
CROSS = {
    "sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 4,
    "cross_attention_dim": 6, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
UNETS = [
    ({"center_input_sample": True}, "center_input_sample=True"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    ({"mid_block_type": None}, "mid_block_type=None"),
    ({"mid_block_scale_factor": 2}, "mid_block_scale_factor=2"),
    ({"act_fn": "gelu"}, "act_fn='gelu'"),
    ({"freq_shift": 2}, "freq_shift=2"),
    ({"norm_num_groups": None}, "norm_num_groups=None"),
    ({"downsample_padding": 2}, "downsample_padding=2"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
    ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    ({"out_channels": 5}, r"out_channels=5 \(of in_channels=3\)"),
    ({"block_out_channels": [8, 12]}, r"block_out_channels=\[8, 12\] \(not multiples of the first\)"),
    ({"layers_per_block": [1, 2]}, r"layers_per_block=\[1, 2\]"),
    ({"something_new": 1}, "something_new=1"),
]  # fmt: skip
OWN_ALONE = [
    ({"resnet_time_scale_shift": "scale_shift"}, r"attn_norm_num_groups=None \(of the middle block\)"),
    ({"attn_norm_num_groups": 2}, r"attn_norm_num_groups=2 \(of the middle block\)"),
    ({"attention_head_dim": 5}, r"attention_head_dim=5 \(of \[16, 16\] channels\)"),
    ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types="),
    ({"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}, "down_block_types="),
    ({"up_block_types": ["AttnUpBlock2D", "KUpBlock2D"]}, "up_block_types="),
    ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, r"up_block_types=.* \(not the mirror of down_block_types\)"),
    ({"upsample_type": "resnet"}, r"up_block_types=.* \(resampling by \['conv', 'resnet'\]\)"),
    ({"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2, "downsample_type": "fir",
      "upsample_type": "fir"}, r"resampling by \['fir'\]"),
]  # fmt: skip
CROSS_ALONE = [
    ({name: value}, f"{name}=")
    for name, value in {
        "mid_block_type": "UNetMidBlock2D", "only_cross_attention": [True, False], "encoder_hid_dim": 4,
        "encoder_hid_dim_type": "text_proj", "dual_cross_attention": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8, "class_embed_type": "projection",
        "resnet_skip_time_act": True, "resnet_out_scale_factor": 2.0, "time_embedding_act_fn": "silu",
        "timestep_post_act": "silu", "time_cond_proj_dim": 4, "conv_in_kernel": 5, "conv_out_kernel": 1,
        "attention_type": "gated", "class_embeddings_concat": True, "mid_block_only_cross_attention": True,
        "cross_attention_norm": "layer_norm", "cross_attention_dim": [6, 8],
        "transformer_layers_per_block": [[1, 2], [1, 2]], "reverse_transformer_layers_per_block": [1, 2],
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    }.items()
]  # fmt: skip
DITS = [
    ({name: value}, f"{name}=")
    for name, value in {
        "attention_bias": False, "activation_fn": "gelu", "norm_type": "ada_norm_single",
        "norm_elementwise_affine": True, "num_embeds_ada_norm": None, "sample_size": [8, 8], "out_channels": 5,
        "cross_attention_dim": 8, "use_additional_conditions": True, "double_self_attention": True,
    }.items()
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), UNETS + OWN_ALONE, ids=str)
def test_of_a_UNet2DModel(options, message):
    with pytest.raises(InputError, match=f"^UNet2DModel options that have no equal here: .*{message}"):
        unet.read("UNet2DModel", {**OWN, **options})


@pytest.mark.parametrize(("options", "message"), UNETS[:-5] + CROSS_ALONE, ids=str)
def test_of_a_UNet2DConditionModel(options, message):
    with pytest.raises(InputError, match=f"^UNet2DConditionModel options that have no equal here: .*{message}"):
        unet.read("UNet2DConditionModel", {**CROSS, **options})


@pytest.mark.parametrize(("options", "message"), DITS, ids=str)
def test_of_a_DiTTransformer2DModel(options, message):
    with pytest.raises(InputError, match=f"^DiTTransformer2DModel options that have no equal here: .*{message}"):
        dit.read("DiTTransformer2DModel", options)


def test_all_are_named_at_once():
    message = "^UNet2DModel options that have no equal here: mid_block_scale_factor=2, time_embedding_type='fourier'$"
    with pytest.raises(InputError, match=message):
        unet.read("UNet2DModel", {**OWN, "time_embedding_type": "fourier", "mid_block_scale_factor": 2})


def test_neutral_values_and_what_is_not_of_their_own_are_taken():
    for kind, options in (("UNet2DModel", OWN), ("UNet2DConditionModel", CROSS)):
        more = {"something_new": None, "_name_or_path": "somewhere", "num_train_timesteps": None}
        assert unet.read(kind, {**options, **more}).network["width"] == 8
    backwards = {"transformer_layers_per_block": [1, 2], "reverse_transformer_layers_per_block": [2, 1]}
    lists = {"layers_per_block": [1, 1], "cross_attention_dim": [6, 6], "only_cross_attention": [False, False]}
    found = unet.read("UNet2DConditionModel", {**CROSS, **backwards, **lists}).network
    assert (found["depth"], found["blocks"], found["context"]) == ([1, 2], 1, 6)


def test_defaults_are_those_of_the_classes():
    library, without = peers.diffusers(), {"_use_default_values", "sample_size"}
    for kind, ours in {**unet.DEFAULTS, "DiTTransformer2DModel": dit.DEFAULTS}.items():
        small = {} if kind.startswith("DiT") else {"block_out_channels": [32] * 4}
        theirs = dict(getattr(library, kind)(**small, **({"num_layers": 1} if not small else {})).config)
        for name in theirs.keys() - without - small.keys() - {"num_layers"}:
            value = list(theirs[name]) if isinstance(theirs[name], tuple) else theirs[name]
            assert value == ours.get(name), (kind, name)
        only_ours = ours.keys() - theirs.keys()
        assert not only_ours or kind.startswith("DiT"), (kind, only_ours)


def test_other_networks_are_named_with_those_that_are_known(tmp_path):
    for name, more in (("AutoencoderKL", {}), ("Transformer2DModel", {"norm_type": "ada_norm"}), (None, {})):
        peers.write(tmp_path / "config.json", {"_class_name": name, **more})
        peers.write(tmp_path / "scheduler_config.json", peers.LINEAR)
        known = "UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel"
        with pytest.raises(InputError, match=f"unknown network of diffusers '{name}':.* Known: {known}"):
            read(tmp_path)


def test_options_of_the_wrong_type_are_one_line(tmp_path):
    peers.write(tmp_path / "config.json", {"_class_name": "UNet2DModel", **OWN, "block_out_channels": 8})
    peers.write(tmp_path / "scheduler_config.json", peers.LINEAR)
    with pytest.raises(InputError, match="make no sense: TypeError"):
        read(tmp_path)
