"""What every network promises: any batch and size that fits, zero at the start, and that it uses all it is given."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from undiffuse.networks import NETWORKS
from undiffuse.networks.unet import GroupNorm, UNet, sinusoidal

# small, with every part in use; a newcomer takes `channels` and whatever makes it small here
SMALL = {"unet": {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (False, True), "embedding": 12}}
PATCHES = {"unet": [{"patch": 1}, {"patch": 2}]}
CASES = [(name, extra) for name in NETWORKS for extra in PATCHES.get(name, [{}])]
every_network = pytest.mark.parametrize(("name", "extra"), CASES, ids=str)


def build(name, channels=3, **extra):
    torch.manual_seed(0)
    return NETWORKS[name](channels=channels, **SMALL.get(name, {}), **extra)


def awake(name, channels=3, **extra):
    """A network whose zero-initialised parts are not zero."""
    network = build(name, channels, **extra)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs(batch=2, channels=3, height=8, width=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, height, width, generator=generator)
    vector = torch.randn(batch, 12, generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000, vector


@every_network
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sizes_channels_and_a_zero_start(name, extra, channels):
    network = build(name, channels, **extra)
    for size in ((8, 8), (4, 12), (16, 8)):
        x, c_noise, vector = inputs(2, channels, *size)
        for condition in ({}, {"vector": vector}):
            output = network(x, c_noise, **condition)
            assert output.shape == x.shape and (output == 0).all()


@every_network
def test_a_size_that_does_not_fit_names_those_that_do(name, extra):
    network, step = build(name, **extra), 2 * extra["patch"]
    x, c_noise, _ = inputs(2, 3, 8, 8 + step // 2)
    with pytest.raises(ValueError, match=f"width must be a multiple of {step}.* use 8 or {8 + step}"):
        network(x, c_noise)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        network(x[:, :1], c_noise)


@every_network
def test_gradients_reach_every_parameter(name, extra):
    # zero-initialised outputs wake from the head backwards: the head at the first step, the blocks' ends at the second
    network, (x, c_noise, vector) = build(name, **extra), inputs()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, c_noise, vector=vector) - x).square().mean().backward()
        optimizer.step()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@every_network
def test_the_output_depends_on_all_that_is_given_and_samples_do_not_see_each_other(name, extra):
    network, (x, c_noise, vector) = awake(name, **extra), inputs(3)
    output = network(x, c_noise, vector=vector)
    for other in (
        network(x, c_noise + 100, vector=vector),
        network(x, c_noise, vector=vector + 1),
        network(x + 0.1, c_noise, vector=vector),
    ):
        assert ((other - output).abs().amax((1, 2, 3)) > 1e-4).all()
    for i in range(3):
        one = slice(i, i + 1)
        assert_close(network(x[one], c_noise[one], vector=vector[one]), output[one], rtol=1e-4, atol=1e-4)


@every_network
def test_weights_carry_the_whole_network(name, extra):
    network, (x, c_noise, vector) = awake(name, **extra), inputs()
    other = build(name, **extra).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x, c_noise, vector=vector), network(x, c_noise, vector=vector))


@every_network
def test_memory_formats_and_precisions_agree(name, extra):
    network, (x, c_noise, vector) = awake(name, **extra), inputs()
    output = network(x, c_noise, vector=vector)
    last = network(x.contiguous(memory_format=torch.channels_last), c_noise, vector=vector)
    assert_close(last, output, rtol=1e-5, atol=1e-5)
    double = copy.deepcopy(network).double()(x.double(), c_noise.double(), vector=vector.double())
    assert double.dtype == torch.float64
    assert_close(output.double(), double, rtol=1e-2, atol=1e-3 * float(double.detach().abs().max()))


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


COMPILED = """
import torch
from undiffuse.networks import NETWORKS
network = NETWORKS[{name!r}](channels=3, **{arguments!r})
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
x, c_noise, vector = torch.randn(2, 3, 8, 12), torch.tensor([10.0, 700.0]), torch.randn(2, 12)
compiled = torch.compile(network, fullgraph=True)
output = network(x, c_noise, vector=vector)
torch.testing.assert_close(compiled(x, c_noise, vector=vector), output, rtol=1e-3, atol=1e-3)
"""


@pytest.mark.slow
@every_network
def test_networks_compile_as_one_graph(name, extra):
    # in a process of its own: the checks of signatures cannot be traced
    code = COMPILED.format(name=name, arguments=SMALL.get(name, {}) | extra)
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.06)])
def test_group_norm_keeps_its_digits_under_a_large_mean(dtype, tolerance):
    x = (torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0)) + 30).to(dtype)
    expected = torch.nn.functional.group_norm(x.double(), 32)
    assert (GroupNorm(32)(x).double() - expected).abs().max() < tolerance
