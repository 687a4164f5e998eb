"""What the classifiers' networks promise: logits for any batch and size that fits, uniform at the start."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import InputError
from undiffuse.networks import CLASSIFIERS, NETWORKS
from undiffuse.registry import build

CASES = [
    {"width": 8},
    {"width": 8, "multipliers": (1, 2, 2), "attention": (False, True, False), "patch": 2, "head_width": 4},
    {"width": 8, "dimensions": 1, "embedding": 12, "attention": True},
    {"width": 8, "dimensions": 3, "blocks": 2},
]
every_case = pytest.mark.parametrize("config", CASES, ids=str)


def made(config, awake=True):
    torch.manual_seed(0)
    network = CLASSIFIERS["encoder"](channels=3, classes=5, **config).eval()
    if awake:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network


def inputs(network, sizes=(2, 3, 1), batch=3):
    generator = torch.Generator().manual_seed(1)
    space = [n * network.divisor for n in sizes[: network.dimensions]]
    return torch.randn(batch, 3, *space, generator=generator), torch.randn(batch, generator=generator)


def test_classifiers_are_no_denoisers():
    assert not CLASSIFIERS.keys() & NETWORKS.keys()


@every_case
def test_logits_of_every_size_start_at_zero(config):
    network = made(config, awake=False)
    for sizes in ((2, 2, 2), (1, 3, 2), (4, 1, 1)):
        logits = network(*inputs(network, sizes))
        assert logits.shape == (3, 5) and (logits == 0).all()


@every_case
def test_logits_depend_on_both_inputs_and_samples_do_not_see_each_other(config):
    network = made(config).double()
    x, c_noise = inputs(network)
    x = x.double()
    logits = network(x, c_noise)
    for other in (network(x + 0.1 * torch.randn_like(x), c_noise), network(x, c_noise + 1)):
        assert ((other - logits).abs().amax(1) > 1e-6).all()
    for i in range(3):
        assert_close(network(x[i : i + 1], c_noise[i : i + 1]), logits[i : i + 1], rtol=1e-10, atol=1e-10)
    single = made(config)(x.float(), c_noise)
    assert_close(single.double(), logits, rtol=1e-2, atol=1e-3)


@every_case
def test_gradients_reach_every_parameter_and_the_input(config):
    network = made(config, awake=False)
    x, c_noise = inputs(network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        x = x.detach().requires_grad_()
        nn.functional.cross_entropy(network(x, c_noise), torch.tensor([0, 1, 4])).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert x.grad.abs().flatten(1).amax(1).min() > 0


def test_shapes_and_arguments_that_do_not_fit_are_refused(unchecked):
    network = made(CASES[1])
    with pytest.raises(ValueError, match="3 channels, not 1"):
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="height must be a multiple of 8 for this encoder, not 12: use 8 or 16"):
        network.check_shape(3, 12, 8)
    for arguments, words in (
        ({"classes": 0}, "classes must be whole numbers from 1, not 0"),
        ({"multipliers": 2}, "multipliers must be a list"),
        ({"attention": (True,)}, "each of 2 levels, not 1"),
        ({"width": 9}, "width must be even"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"dimensions": 4}, "dimensions must be one of 1, 2, 3"),
        ({"width": 50}, "cannot be shared by 3 heads"),
    ):
        with pytest.raises(InputError, match=words):
            build("network", CLASSIFIERS, "encoder", {"channels": 3, "classes": 5, **arguments})
