"""Raw conditions: what is refused, what the null is, and that each of several conditions is used."""

import pytest
import torch
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.conditioning import CONDITIONS, Conditioner, Label, Vector
from undiffuse.networks import UNet
from undiffuse.schedule import Cosine

MADE = {"label": lambda: Label(5, 8), "vector": lambda: Vector(3, 8)}
RAW = {
    "label": torch.tensor([0, 4, 2]),
    "vector": torch.tensor([[0.0, 1, 2], [1, 1, 1], [-1, 0, 0.5]]),
}
OTHER = {"label": torch.tensor([1, 3, 0]), "vector": -RAW["vector"] + 0.25}


@pytest.fixture
def conditioner():
    torch.manual_seed(0)
    return Conditioner({name: MADE[name]() for name in CONDITIONS})


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_gives_a_vector_per_sample_and_a_null_of_the_same_shape(name):
    part = MADE[name]()
    encoded = part(part.read(RAW[name]))
    assert encoded.shape == (3, 8) and part.null().shape == (1, 8)
    assert len(torch.cat([encoded, part.null()]).unique(dim=0)) == 4
    assert_close(part(part.read(RAW[name][1])), encoded[1:2])
    assert_close(part(part.read(RAW[name].tolist())), encoded)


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_is_missing_or_dropped_gets_the_null(name):
    part = MADE[name]()
    conditioner = Conditioner({name: part})
    (null,), (given,) = conditioner.encode({}).values(), conditioner.encode({name: RAW[name]}).values()
    assert torch.equal(null, part.null())
    assert torch.equal(next(iter(conditioner.encode({name: None}).values())), part.null())
    drop = torch.tensor([True, False, True])
    (mixed,) = conditioner.encode({name: RAW[name]}, drop).values()
    assert torch.equal(mixed, torch.where(drop[:, None], null, given))


def test_conditions_that_feed_the_same_input_add_up(conditioner):
    for given in ({}, {"label": RAW["label"]}, {"vector": RAW["vector"]}, dict(RAW)):
        encoded = conditioner.encode(given)
        parts = [part(part.read(given[n])) if n in given else part.null() for n, part in conditioner.parts.items()]
        assert set(encoded) == {"vector"}
        assert_close(encoded["vector"], sum(parts))


def test_the_output_of_a_denoiser_depends_on_the_time_and_on_every_condition(conditioner):
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, embedding=8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser, x = Denoiser(network, Cosine(), conditioner=conditioner), torch.randn(3, 1, 4, 4)
    output = denoiser(x, 0.5, denoiser.encode(RAW)).output
    others = [denoiser(x, 0.6, denoiser.encode(RAW)).output]
    others += [denoiser(x, 0.5, denoiser.encode(RAW | {name: OTHER[name]})).output for name in CONDITIONS]
    for other in others:
        assert ((other - output).abs().amax((1, 2, 3)) > 1e-4).all()
    output.sum().backward()
    for key, parameter in conditioner.named_parameters():
        assert key.endswith("absent") or parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("label", [1, 5], "label 5 is out of range: the model knows 0 to 4"),
        ("label", -1, "label -1 is out of range"),
        ("label", [1.0, 2.0], "integers, not torch.float32"),
        ("label", torch.tensor([True]), "integers, not torch.bool"),
        ("vector", [[0.0, 1.0]], r"\(B, 3\), not \(1, 2\)"),
        ("vector", [[0.0, 1.0, float("nan")]], "NaN"),
        ("vector", [[0.0, 1.0, float("inf")]], "infinity"),
        ("labels", [1], "did you mean 'label'"),
    ],
)
def test_what_is_not_a_condition_is_refused_by_name(conditioner, name, raw, message):
    with pytest.raises(InputError, match=message):
        conditioner.encode({name: raw})
