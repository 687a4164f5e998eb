"""Networks of diffusers as ours: the same outputs, wherever their folders keep what they hold."""

import shutil

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from formats import peers
from undiffuse import InputError, formats, pipeline
from undiffuse.formats import diffusers

U, C, D = "UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"
SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
OWN = {
    **SMALL, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SCALE_SHIFT = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4}
CROSS = {
    **SMALL, "cross_attention_dim": 6, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 2,
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 3, "num_layers": 2, "sample_size": 8,
    "num_embeds_ada_norm": 5, "norm_eps": 1e-6,
}  # fmt: skip
NETWORKS = {
    "as made": (U, OWN),
    "two blocks, scale and shift": (U, {**OWN, **SCALE_SHIFT, "layers_per_block": 2, "time_embedding_dim": 20}),
    "ADM": (U, {
        **OWN, **SCALE_SHIFT, "block_out_channels": (8, 16, 16), "num_class_embeds": 5, "downsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"), "upsample_type": "resnet",
    }),
    "DDPM": (U, {
        **OWN, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6,
        "attention_head_dim": None,
    }),
    "classes, no attention": (U, {
        **OWN, "num_class_embeds": 5, "add_attention": False, "in_channels": 1, "out_channels": 1,
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "sample_size": (8, 16),
    }),
    "one level, groups of the middle given": (U, {
        **OWN, "block_out_channels": (8,), "down_block_types": ("AttnDownBlock2D",), "attn_norm_num_groups": 4,
        "up_block_types": ("AttnUpBlock2D",), "act_fn": "swish",
    }),
    "super-resolution": (U, {**OWN, "in_channels": 6}),
    "learned variance": (U, {**OWN, "out_channels": 6}),
    "Stable Diffusion 1": (C, CROSS),
    "Stable Diffusion 2": (C, {
        **CROSS, "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": (1, 4), "use_linear_projection": True, "upcast_attention": True,
    }),
    "deeper transformers, inpainting": (C, {
        **CROSS, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "in_channels": 9, "layers_per_block": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2),
    }),
    "cross-attention and classes": (C, {**CROSS, **SCALE_SHIFT, "num_class_embeds": 5}
                                    | {"attn_norm_num_groups": None}),
    "DiT": (D, {**DIT, "out_channels": 6}),
    "DiT, larger patches": (D, {**DIT, "patch_size": 4, "num_layers": 3, "in_channels": 4}),
}  # fmt: skip


def made(name, seed=0):
    kind, options = NETWORKS[name]
    unknown = {key for key, value in options.items() if value is None and key == "attn_norm_num_groups"}
    return peers.network(kind, seed, **{key: value for key, value in options.items() if key not in unknown})


def place(network):
    return "transformer" if type(network).__name__ == D else "unet"


def both(network, model, seed=0):
    """What a network of theirs and a pipeline of ours give for the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    channels, count = model.shape[0], network.config.in_channels
    x = torch.randn(4, count, *model.shape[1:], generator=generator)
    t, theirs, ours = torch.tensor([0, 1, 541, 999]), {}, {}
    if "tokens" in model.parts:
        theirs["encoder_hidden_states"] = ours["tokens"] = torch.randn(4, 5, 6, generator=generator)
    if "label" in model.parts:
        theirs["class_labels"] = ours["label"] = torch.tensor([0, 3, 4, 1])
    if "image" in model.parts:
        ours["image"] = x[:, channels:]
    with torch.no_grad():
        output = model.denoiser.network(x[:, :channels], t.float(), **model.denoiser.encode(ours))
        return network(x, t, **theirs).sample, output


def assert_same(network, model):
    theirs, ours = both(network, model)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_gives_what_theirs_gives(tmp_path, name):
    network = made(name)
    model = diffusers.load(peers.save(tmp_path / "model", network, place=place(network)), device="cpu")
    assert_same(network, model)
    assert model.denoiser.learns_variance == (network.config.out_channels == 6)
    assert not model.denoiser.training and not any(p.requires_grad for p in model.denoiser.parameters())
    size = network.config.sample_size
    assert model.shape[1:] == ((size, size) if isinstance(size, int) else tuple(size))


def test_a_run_folder_made_from_it_is_loaded_as_any_other(tmp_path):
    network = made("ADM")
    folder = peers.save(tmp_path / "model", network)
    notes = diffusers.import_folder(folder, tmp_path / "runs" / "adm")
    assert notes == diffusers.read(folder).notes == ()
    model = pipeline.load(tmp_path / "runs" / "adm", device="cpu")
    assert_same(network, model)
    assert model.name == "model" and model.classes == tuple("01234") and not model.parts["label"].optional
    with pytest.raises(InputError, match="exists already"):
        diffusers.import_folder(folder, tmp_path / "runs" / "adm")


def test_what_load_is_given_decides(tmp_path):
    network = made("as made")
    folder = peers.save(tmp_path / "theirs", network)
    diffusers.import_folder(folder, tmp_path / "ours")
    for path in (folder, folder / "unet", tmp_path / "ours"):
        assert_same(network, formats.load(str(path), device="cpu"))
    with pytest.raises(InputError, match=r"not a run folder .*; nor a folder of diffusers"):
        formats.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="network of your own"):
        formats.load(folder, torch.nn.Identity())
    assert not diffusers.is_folder(tmp_path) and not diffusers.is_folder(tmp_path / "ours")


# -- where things lie --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return peers.save(tmp_path / "model", made("as made"))


def test_a_network_alone_with_its_scheduler_beside_its_configuration(tmp_path, folder):
    bare = tmp_path / "bare"
    shutil.copytree(folder / "unet", bare)
    with pytest.raises(InputError, match=r"has no scheduler_config.json, .*; looked for .*scheduler/scheduler_config"):
        diffusers.read(bare)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", bare)
    assert_same(made("as made"), diffusers.load(bare, device="cpu"))


def test_parts_and_half_precision(tmp_path):
    network = made("as made")
    network.save_pretrained(tmp_path / "parts" / "unet", max_shard_size="20KB")
    peers.write(tmp_path / "parts" / "scheduler" / "scheduler_config.json", peers.LINEAR)
    assert len(list((tmp_path / "parts" / "unet").glob("*.safetensors"))) > 1
    assert_same(network, diffusers.load(tmp_path / "parts", device="cpu"))
    next((tmp_path / "parts" / "unet").glob("*-00002-*")).unlink()
    with pytest.raises(InputError, match=r"00002-of-\d+.safetensors does not exist"):
        diffusers.read(tmp_path / "parts")
    half = peers.save(tmp_path / "half", network.half())
    weights = half / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert_same(network.float(), diffusers.load(half, device="cpu"))
    peers.write(half / "unet" / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": "../b"}})
    with pytest.raises(InputError, match="names a file elsewhere"):
        diffusers.read(half)


def test_names_of_attention_as_they_were_before_2023(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = safetensors.torch.load_file(path)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    safetensors.torch.save_file(weights, path)
    assert any("proj_attn" in key for key in weights)
    assert_same(made("as made"), diffusers.load(folder, device="cpu"))


def test_a_pipeline_says_what_is_not_loaded_and_what_classes_are_called(tmp_path):
    network = made("DiT")
    folder = peers.save(tmp_path / "DiT", network, place="transformer")
    labels = {str(i): name for i, name in enumerate(["tench", "goldfish", "shark", "ray", "cock"])}
    index = {"_class_name": "DiTPipeline", "vae": ["diffusers", "AutoencoderKL"], "id2label": labels}
    peers.write(folder / "model_index.json", {**index, "safety_checker": [None, None]})
    imported = diffusers.read(folder)
    assert imported.spec["codec"] == "identity" and imported.spec["condition"]["label"]["optional"]
    assert imported.spec["resolved"]["conditions"] == {"label": {"classes": list(labels.values())}}
    assert len(imported.notes) == 1 and "not loaded: vae (AutoencoderKL);" in imported.notes[0]
    model = diffusers.load(folder, device="cpu")
    for _ in model.walk([0], condition={"label": "shark"}, guidance=2.0, steps=2):
        pass
    with torch.no_grad():  # the null is the class after the last
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
        theirs = network(x, t, class_labels=torch.tensor([5, 5])).sample
        assert_close(model.denoiser.network(x, t.float(), **model.denoiser.encode({})), theirs, rtol=1e-5, atol=1e-5)


def test_the_published_DiT_is_read_under_its_old_class_with_its_other_epsilon(tmp_path):
    network = peers.network(D, **{**DIT, "norm_eps": 1e-5})
    folder = peers.save(tmp_path / "DiT", network, place="transformer")
    peers.change(folder / "transformer" / "config.json", _class_name="Transformer2DModel", num_vector_embeds=None)
    model = diffusers.load(folder, device="cpu")
    assert model.denoiser.network.blocks[0].mlp_norm.eps == 1e-5 and model.denoiser.network.norm.eps == 1e-6
    theirs, ours = both(network, model)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_a_text_encoder_makes_of_nothing_becomes_the_null(tmp_path):
    network = made("Stable Diffusion 1")
    folder = peers.save(tmp_path / "model", network)
    empty, text = torch.randn(5, 6), torch.randn(5, 6)
    model = diffusers.load(folder, device="cpu", null_tokens=empty)
    x, t = torch.randn(1, *model.shape), torch.tensor(0.5)
    with torch.no_grad():
        guided = model.guided(7.5, tokens=text)(x, t).output
        level = torch.tensor([499.0])
        null, given = (network(x, level, encoder_hidden_states=tokens[None]).sample for tokens in (empty, text))
    assert_close(guided, null + 7.5 * (given - null), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="tokens has none"):
        diffusers.load(folder, device="cpu").guided(7.5, tokens=text)
    with pytest.raises(InputError, match="null_tokens are for networks"):
        diffusers.read(peers.save(tmp_path / "plain", made("classes, no attention")), null_tokens=empty)
    with pytest.raises(InputError, match=r"\(B, L, 6\)"):
        diffusers.read(folder, null_tokens=torch.zeros(5, 7))


def test_a_class_that_stood_for_none_becomes_the_null(tmp_path):
    network = made("classes, no attention")
    folder = peers.save(tmp_path / "model", network)
    imported = diffusers.read(folder, null_label=0)
    assert imported.notes == ("classes after 0 move down by one; by their names, '0' and so on, they stay.",)
    model = diffusers.load(folder, device="cpu", null_label=0)
    assert model.classes == ("1", "2", "3", "4")
    x, t = torch.randn(2, 1, 8, 16), torch.tensor([10, 900])
    with torch.no_grad():
        null, third = (network(x, t, class_labels=torch.tensor([label] * 2)).sample for label in (0, 3))
        assert_close(model.denoiser.network(x, t.float(), **model.denoiser.encode({})), null, rtol=1e-5, atol=1e-5)
        encoded = model.denoiser.encode({"label": ["3", "3"]})
        assert_close(model.denoiser.network(x, t.float(), **encoded), third, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="one of the network's 5 classes, from 0, not 5"):
        diffusers.read(folder, null_label=5)
    with pytest.raises(InputError, match="null_label=0 was given, but which class is the null is known here"):
        diffusers.read(peers.save(tmp_path / "DiT", made("DiT"), place="transformer"), null_label=0)


def test_a_size_that_is_not_told_is_asked_for(folder):
    peers.change(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(InputError, match="no sample_size: give the size of the samples, size="):
        diffusers.read(folder)
    assert diffusers.load(folder, device="cpu", size=16).shape == (3, 16, 16)
    assert diffusers.load(folder, device="cpu", size=(8, 12)).shape == (3, 8, 12)
    with pytest.raises(InputError, match="height must be a multiple of 2"):
        diffusers.load(folder, size=9)


# -- what cannot be read -----------------------------------------------------------------------------------------------


def test_broken_folders(folder):
    unet, weights = folder / "unet", folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    with pytest.raises(InputError, match="truncated or not a safetensors file"):
        diffusers.read(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"has no diffusion_pytorch_model\.safetensors"):
        diffusers.read(folder)
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(InputError, match=r"pickle \(diffusion_pytorch_model\.bin\).*save_pretrained"):
        diffusers.read(folder)
    weights.write_bytes(whole)
    (unet / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        diffusers.read(folder)
    (unet / "config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object, not list"):
        diffusers.read(folder)
    (unet / "config.json").unlink()
    with pytest.raises(InputError, match=r"no network of diffusers: no config\.json in it, nor in unet/"):
        diffusers.read(folder)


def test_weights_that_do_not_fit_are_named(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    for changed, message in (
        ({"down_blocks.0.resnets.0.conv1.bias": None}, "has no down_blocks.0.resnets.0.conv1.bias"),
        ({"class_embedding.weight": torch.zeros(3, 32)}, "has an unexpected class_embedding.weight"),
        ({"conv_in.weight": torch.zeros(8, 3, 1, 1)}, r"conv_in.weight is \(8, 3, 1, 1\), not \(8, 3, 3, 3\)"),
        ({"time_embedding.linear_1.weight": torch.zeros(32, 4, 2)[:, :2, 0]}, r"is \(32, 2\), not \(32, 8\)"),
    ):
        changed = {name: value for name, value in (weights | changed).items() if value is not None}
        safetensors.torch.save_file({name: value.contiguous() for name, value in changed.items()}, path)
        with pytest.raises(InputError, match=message):
            diffusers.read(folder)


def test_a_DiT_whose_blocks_have_embedders_of_their_own_is_refused(tmp_path):
    network = made("DiT")
    with torch.no_grad():
        network.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias[0] += 1
    folder = peers.save(tmp_path / "DiT", network, place="transformer")
    with pytest.raises(InputError, match=r"transformer_blocks\.1\.norm1\.emb.* is not the same as"):
        diffusers.read(folder)
