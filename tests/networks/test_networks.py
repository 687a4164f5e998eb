"""What every network promises: any batch and size that fits, zero at the start, and that it uses all it is given.

CASES has several small configurations of every network in NETWORKS; what a network takes is read from its attributes.
"""

import copy
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from undiffuse.networks import MLP, NETWORKS, DiT, UNet
from undiffuse.networks.dit import AXES, rotary_positions, rotate, sin_cos_positions
from undiffuse.networks.published import PUBLISHED, parameters
from undiffuse.networks.unet import GroupNorm, sinusoidal

UNET = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (False, True), "embedding": 12}
DIT = {"width": 24, "depth": 2, "heads": 2, "expansion": 2, "frequencies": 16}
ALL_CROSS = {"context": 5, "vector_by": "cross-attention", "tokens_by": "cross-attention"}
ALL_IN_CONTEXT = {"context": 5, "vector_by": "in-context", "tokens_by": "in-context"}
# small, with every part in use; a newcomer's configurations belong here
CASES = {
    "unet": [
        UNET,
        UNET | {"patch": 2},
        UNET
        | {
            "modulation": "add",
            "pad_end": True,
            "frequency_shift": 1,
            "heads": 1,
            "groups": 4,
            "middle_attention": True,
        },
        UNET | {"resample": "residual"},
        UNET | {"resample": "narrow", "learned_variance": True},
        UNET | {"context": 5, "depth": 2, "heads": 2},
        UNET | {"condition_channels": 2, "patch": 2},
        UNET | {"dimensions": 1, "resample": "residual"},
        UNET | {"dimensions": 3, "patch": 2, "context": 5},
    ],
    "dit": [
        DIT,
        DIT | {"positions": "rope", "context": 5, "learned_variance": True},
        DIT | {"positions": "rope", **ALL_IN_CONTEXT},
        DIT | {"patch": 1, "size": 8, **ALL_CROSS},
        DIT | {"context": 5, "tokens_by": "adaln", "vector_by": "in-context"},
        DIT | {"condition_channels": 2, "frequency_shift": 1},
        DIT | {"dimensions": 1, "patch": 4, "positions": "rope", **ALL_CROSS},
        DIT | {"dimensions": 3, "condition_channels": 1, "size": 4},
    ],
    "mlp": [
        {"width": 16, "depth": 2},
        {"width": 16, "depth": 1, "embedding": 12, "expansion": 1, "learned_variance": True},
    ],
}
# compiling takes long
COMPILED = [("unet", 1), ("unet", 5), ("dit", 1), ("dit", 3), ("mlp", 0)]


def label(value):
    short = (
        [f"{k}={v}" for k, v in value.items() if (k, v) not in {**UNET, **DIT}.items()] if type(value) is dict else []
    )
    return "-".join(short) if short else None


every_case = pytest.mark.parametrize(("name", "config"), [(n, c) for n, cs in CASES.items() for c in cs], ids=label)


def cases_with(argument):
    """Every configuration of the networks that have this argument."""
    has = [name for name in CASES if argument in inspect.signature(NETWORKS[name]).parameters]
    return pytest.mark.parametrize(("name", "config"), [(n, c) for n in has for c in CASES[n]], ids=label)


def build(name, config, channels=3):
    torch.manual_seed(0)
    return NETWORKS[name](channels=channels, **config)


def awake(name, config, channels=3):
    """A network whose zero-initialised parts are not zero."""
    network = build(name, config, channels)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs(network, batch=2, patches=(2, 3, 2)):
    """(x, c_noise) and every condition that the network takes; patches: sizes in units of the smallest that fits."""
    # the last size is not 1: torch's strided Conv3d is wrong there in bfloat16 on some CPUs (pytorch issue 169688)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(batch, *shape, generator=generator)

    spatial = [n * network.divisor for n in patches[: network.dimensions]] if hasattr(network, "divisor") else []
    given = (normal(network.channels, *spatial), torch.rand(batch, generator=generator) * 1000)
    conditions = {"vector": normal(network.embedding_width)}
    if getattr(network, "context", None):
        conditions["tokens"] = normal(4, network.context)
    if getattr(network, "condition_channels", 0):
        conditions["image"] = normal(network.condition_channels, *spatial)
    return given, conditions


def test_every_network_has_cases():
    assert CASES.keys() == NETWORKS.keys() == {name for name, _ in COMPILED}


@every_case
@pytest.mark.parametrize("channels", [1, 4])
def test_sizes_channels_and_a_zero_start(name, config, channels):
    network = build(name, config, channels)
    assert network.out_channels == channels * (2 if config.get("learned_variance") else 1)
    for patches in ((2, 2, 2), (1, 3, 2), (4, 2, 1)):
        (x, c_noise), conditions = inputs(network, 2, patches)
        for given in ({}, {"vector": conditions["vector"]}, conditions):
            output = network(x, c_noise, **given)
            assert output.shape == (2, network.out_channels, *x.shape[2:]) and (output == 0).all()


@every_case
def test_a_shape_that_does_not_fit_names_those_that_do(name, config):
    network = build(name, config)
    (x, c_noise), _ = inputs(network)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        network(x[:, :1], c_noise)
    with pytest.raises(ValueError, match=r"was made for|takes vectors"):
        network.check_shape(*x.shape[1:], 4)
    if (step := getattr(network, "divisor", 1)) > 1:
        with pytest.raises(
            ValueError, match=f"must be a multiple of {step} .* not {step + 1}: use {step} or {2 * step}"
        ):
            network.check_shape(3, *x.shape[2:-1], step + 1)
        with pytest.raises(ValueError, match=f"{AXES[network.dimensions][-1]} must .* not 1: use {step}$"):
            network(x[..., :1], c_noise)


@every_case
def test_gradients_reach_every_parameter(name, config):
    # zero-initialised outputs wake from the head backwards: the head at the first step, the blocks' ends at the second
    network = build(name, config)
    (x, c_noise), conditions = inputs(network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, c_noise, **conditions) - 1).square().mean().backward()
        optimizer.step()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@every_case
def test_the_output_depends_on_all_that_is_given_and_samples_do_not_see_each_other(name, config):
    network = awake(name, config)
    (x, c_noise), conditions = inputs(network, 3)
    output = network(x, c_noise, **conditions)
    others = {"x": network(x + 0.1, c_noise, **conditions), "c_noise": network(x, c_noise + 100, **conditions)}
    for key, value in conditions.items():
        others[key] = network(x, c_noise, **conditions | {key: torch.randn_like(value)})
        others[f"no {key}"] = network(x, c_noise, **conditions | {key: None})
    for key, other in others.items():
        assert ((other - output).flatten(1).abs().amax(1) > 1e-4).all(), key
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in conditions.items()}
        assert_close(network(x[i : i + 1], c_noise[i : i + 1], **one), output[i : i + 1], rtol=1e-4, atol=1e-4)


@cases_with("context")
def test_tokens_are_a_set_and_refused_where_they_are_not_declared(name, config):
    network = awake(name, config)
    (x, c_noise), conditions = inputs(network)
    if "tokens" not in conditions:
        with pytest.raises(ValueError, match="tokens"):
            network(x, c_noise, tokens=torch.zeros(2, 4, 5))
        return
    turned = conditions | {"tokens": conditions["tokens"].flip(1)}
    assert_close(network(x, c_noise, **turned), network(x, c_noise, **conditions), rtol=1e-4, atol=1e-4)


@cases_with("condition_channels")
def test_an_image_may_be_one_value_and_no_image_is_zeros(name, config):
    network = awake(name, config)
    (x, c_noise), conditions = inputs(network)
    if "image" not in conditions:
        with pytest.raises(ValueError, match="image"):
            network(x, c_noise, image=x)
        return
    one = conditions["image"].flatten(2)[..., :1].reshape(*conditions["image"].shape[:2], *[1] * network.dimensions)
    assert torch.equal(network(x, c_noise, image=one), network(x, c_noise, image=one.expand(-1, -1, *x.shape[2:])))
    assert torch.equal(network(x, c_noise), network(x, c_noise, image=torch.zeros_like(one)))
    with pytest.raises(ValueError, match=r"image.* not \("):
        network(x, c_noise, image=torch.cat([conditions["image"]] * 2, -1))


@every_case
def test_weights_carry_the_whole_network(name, config):
    network, other = awake(name, config), build(name, config).eval()
    (x, c_noise), conditions = inputs(network)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x, c_noise, **conditions), network(x, c_noise, **conditions))


@every_case
def test_memory_formats_and_precisions_agree(name, config):
    network = awake(name, config)
    (x, c_noise), conditions = inputs(network)
    output = network(x, c_noise, **conditions)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels-last, whatever the number of axes
    assert_close(network(last, c_noise, **conditions), output, rtol=1e-5, atol=1e-5)
    doubles = {key: value.double() for key, value in conditions.items()}
    double = copy.deepcopy(network).double()(x.double(), c_noise.double(), **doubles)
    assert double.dtype == torch.float64
    assert_close(output.double(), double, rtol=1e-2, atol=1e-3 * float(double.detach().abs().max()))


@every_case
def test_half_precision_and_autocast_stay_close(name, config):
    network = awake(name, config)
    (x, c_noise), conditions = inputs(network)
    output = network(x, c_noise, **conditions)
    with torch.autocast("cpu", torch.bfloat16):
        close = network(x, c_noise, **conditions)
    halves = {key: value.bfloat16() for key, value in conditions.items()}
    half = copy.deepcopy(network).bfloat16()(x.bfloat16(), c_noise, **halves)
    assert half.dtype == torch.bfloat16
    for other in (close, half):
        assert (other - output).abs().max() < 0.1 * output.abs().max()


@cases_with("checkpointing")
def test_checkpointing_keeps_less_and_gives_the_same_gradients(name, config):
    gradients, kept = [], []
    for checkpointing in (False, True):
        network = awake(name, config | {"checkpointing": checkpointing}).train()
        (x, c_noise), conditions = inputs(network)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = network(x, c_noise, **conditions).square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
    assert_close(*gradients)


@pytest.mark.parametrize("channels", [6, 32, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_group_norm_is_torchs_with_a_modulation(channels, dtype):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(2, channels, 4, 5, dtype=dtype, generator=generator)
    norm = GroupNorm(channels).to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    expected = F.group_norm(x, norm.groups, norm.weight, norm.bias, norm.epsilon)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    assert channels % norm.groups == 0
    assert_close(norm(x), expected, **tolerance)
    assert_close(norm(x.contiguous(memory_format=torch.channels_last)), expected, **tolerance)
    modulation = torch.randn(2, 2 * channels, dtype=dtype, generator=generator)
    scale, shift = modulation[:, :, None, None].chunk(2, 1)
    assert_close(norm(x, modulation), expected * (1 + scale) + shift, **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.06)])
def test_group_norm_keeps_its_digits_under_a_large_mean(dtype, tolerance):
    x = (torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0)) + 30).to(dtype)
    expected = F.group_norm(x.double(), 32)
    assert (GroupNorm(32)(x).double() - expected).abs().max() < tolerance


def test_group_norm_of_large_half_precision_numbers_does_not_overflow():
    x = 400 * torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = F.group_norm(x.half().double(), 32)
    assert (GroupNorm(32)(x.half()).double() - expected).abs().max() < 0.01


def test_sinusoidal_embeddings_tell_levels_apart():
    embedded = sinusoidal(torch.arange(1000.0), 16)
    assert embedded.shape == (1000, 16) and embedded.abs().max() <= 1
    distances = torch.cdist(embedded, embedded).fill_diagonal_(9)
    assert distances.min() > 0.1
    assert_close(embedded[7, 0], torch.tensor(7.0).cos())
    assert_close(embedded[0], torch.tensor([1.0] * 8 + [0.0] * 8))


def test_attention_is_said_for_each_level():
    with pytest.raises(ValueError, match="each of 3 levels, not 2"):
        UNet(attention=(True, False))


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (DiT, {"width": 30, "heads": 4}, "width must be a multiple of heads, 4, not 30"),
        (DiT, {"width": 30, "heads": 2}, "width must be a multiple of 4 for sin-cos positions, not 30"),
        (DiT, {"width": 16, "heads": 8, "positions": "rope"}, "a head must be 4 or more wide to be rotated, not 2"),
        (DiT, {"positions": "learned"}, "positions must be one of sin-cos, rope, not 'learned'"),
        (DiT, {"tokens_by": "sum"}, "tokens_by must be one of adaln, in-context, cross-attention, not 'sum'"),
        (DiT, {"dimensions": 4}, "dimensions must be one of 1, 2, 3, not 4"),
        (DiT, {"depth": 0}, "depth must be a whole number from 1, not 0"),
        (DiT, {"size": 9}, "size must be a multiple of patch, 2, not 9"),
        (DiT, {"frequencies": 2, "frequency_shift": 1}, "frequencies must be even and above 2, not 2"),
        (DiT, {"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        (MLP, {"width": 7}, "width must be even, for sines and cosines, not 7"),
        (MLP, {"depth": 1.5}, "depth must be a whole number from 1, not 1.5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(network, arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


@pytest.mark.parametrize("config", CASES["dit"], ids=label)
def test_blocks_of_a_dit_start_as_the_identity(config):
    network = build("dit", config)
    x, embedding = torch.randn(2, 6, 24), torch.randn(2, 24)
    for block in network.blocks:
        assert torch.equal(block(x, embedding, torch.randn(2, 3, 24)), x)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_patches_go_back_where_they_came_from(dimensions):
    network = DiT(**DIT | {"dimensions": dimensions})
    x = torch.randn(2, 3, *(4, 6, 2)[:dimensions])
    tokens = network._patchify(x)
    assert_close(tokens[:, 0].sum(1), x[(..., *[slice(2)] * dimensions)].flatten(1).sum(1))
    back = tokens.unflatten(-1, (3, -1)).mT.flatten(2)  # channels first in, last out
    assert torch.equal(network._unpatchify(back, x.shape[2:]), x)


def test_rotated_attention_sees_differences_of_positions_only():
    rotation = rotary_positions((5, 6), 12, None, torch.device("cpu"))
    q, k = (torch.randn(12, dtype=torch.float64).expand(1, 1, 30, 12) for _ in range(2))
    scores = (rotate(q, rotation) @ rotate(k, rotation).mT).reshape(5, 6, 5, 6)
    assert_close(scores[1:, :, 1:], scores[:-1, :, :-1])
    assert_close(scores[:, 1:, :, 1:], scores[:, :-1, :, :-1])
    assert scores.std() > 0.01
    assert_close(rotate(q, rotation).norm(dim=-1), q.norm(dim=-1))


def test_sizes_other_than_the_trained_one_are_stretched_into_its_range():
    device = torch.device("cpu")
    for positions in (sin_cos_positions, lambda *given: torch.cat(rotary_positions(*given), 1)):
        plain, trained, twice = (positions(s, 24, t, device) for s, t in (((4, 4), None), ((4, 4), 4), ((8, 4), 4)))
        assert_close(trained, plain)
        assert_close(twice.reshape(8, 4, 24)[::2], plain.reshape(4, 4, 24))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_are_as_large_as_published(name):
    published, count = PUBLISHED[name], parameters(name)
    exact = {"ddpm-cifar10": 35_746_307, "stable-diffusion": 859_520_964}
    assert count == exact.get(name, count)
    assert abs(count / 1e6 / published.millions - 1) < 0.003
    if name.startswith("dit"):
        assert round(count / 1e6, 1) == published.millions


def test_an_unknown_architecture_names_the_known():
    with pytest.raises(ValueError, match=r"are ddpm-cifar10, .* not 'dit-h/14'"):
        parameters("dit-h/14")


def compare_compiled(name, index):
    network = awake(name, CASES[name][index])
    (x, c_noise), conditions = inputs(network)
    compiled = torch.compile(network, fullgraph=True)
    output = network(x, c_noise, **conditions)
    assert_close(compiled(x, c_noise, **conditions), output, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), COMPILED)
def test_networks_compile_as_one_graph(name, index):
    # in a process of its own: the checks of signatures cannot be traced
    code = f"import test_networks; test_networks.compare_compiled({name!r}, {index})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
