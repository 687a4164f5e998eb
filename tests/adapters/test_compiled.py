"""Compiled sampling: the same samples to float tolerance, and no more programs than sizes of batches call for."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, samplers
from undiffuse.adapters import Compiled
from undiffuse.adapters.compiled import MOST_PROGRAMS
from undiffuse.codecs import Pixels
from undiffuse.conditioning import Conditioner, Label
from undiffuse.guidance import ClassifierFree
from undiffuse.networks import DiT, UNet
from undiffuse.pipeline import Pipeline
from undiffuse.schedule import Cosine

NETWORKS = {
    "unet": lambda: UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(False, True), head_width=8),
    "dit": lambda: DiT(1, width=16, depth=2, heads=2, size=8),
}


def pipeline(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for parameter in network.parameters():  # both give 0 at the start
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    conditioner = Conditioner({"label": Label(3, network.embedding_width)})
    return Pipeline(Denoiser(network, Cosine(), conditioner=conditioner), Pixels(), (1, 8, 8))


@pytest.fixture
def eager(monkeypatch, unchecked):
    """torch.compile stood in for by the function itself, whose calls are counted by their shapes."""
    shapes = []

    def compile(function, mode, dynamic):
        def called(**inputs):
            assert all(value.is_contiguous() for value in inputs.values())
            shapes.append({len(value) for value in inputs.values()})
            return function(**inputs)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    return shapes


def sizes(shapes):
    assert all(len(each) == 1 for each in shapes)
    return [each.pop() for each in shapes]


def test_a_smaller_batch_is_filled_up_to_one_that_is_compiled(eager):
    network = nn.Linear(2, 2)
    network.forward = lambda x, c_noise, vector=None: x + c_noise[:, None] + (0 if vector is None else vector)
    compiled, x = Compiled(network), torch.randn(8, 2)
    with torch.no_grad():
        for rows in (8, 5, 2, 1, 8):
            assert_close(compiled(x[:rows], x[:rows, 0], vector=x[:rows]), 2 * x[:rows] + x[:rows, :1])
        # a new size is called once to warm up; 1 is more than four times smaller than 8
        assert sizes(eager) == [8, 8, 8, 8, 1, 1, 8]
        assert compiled.programs == 2
        compiled(x, x[:, 0])  # other conditions are another program
        assert compiled.programs == 3 and compiled.warmup_seconds > 0
    eager.clear()
    out = compiled(x.requires_grad_(), x[:, 0])
    assert out.requires_grad and not eager  # gradients are the network's own


def test_there_are_no_more_programs_than_torch_compiles(eager):
    network = nn.Linear(2, 2)
    network.forward = lambda x, c_noise: x + c_noise[:, None]
    compiled, x = Compiled(network), torch.randn(10, 2)
    with torch.no_grad():
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 7):
            assert_close(compiled(x[:rows], x[:rows, 0]), x[:rows] + x[:rows, :1])
    assert compiled.programs == MOST_PROGRAMS == torch._dynamo.config.recompile_limit
    assert max(sizes(eager)) == 8


def test_what_is_asked_of_the_network_it_answers():
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1)
    compiled = Compiled(network)
    assert compiled.embedding_width == network.embedding_width and not compiled.learned_variance
    with pytest.raises(ValueError, match="multiple of 2"):
        compiled.check_shape(1, 9, 8)
    with pytest.raises(AttributeError, match="nothing"):
        compiled.nothing
    assert list(compiled.state_dict()) == [f"network.{name}" for name in network.state_dict()]
    other = copy.deepcopy(compiled)
    assert other.network is not network and other.programs == 0


def test_a_pipeline_samples_the_same_in_batches_of_one_size(eager):
    plain = pipeline("dit")
    how = {"label": [0, 1, 2, 0, 1, 2, 0], "guidance": 2.0, "steps": 3, "batch_size": 4}
    before = plain.sample(7, **how)
    assert plain.warmup_seconds == 0
    compiled = plain.compile()
    assert compiled.compile() is compiled and isinstance(compiled.denoiser.network.network, DiT)
    assert abs(compiled.sample(7, **how).astype(int) - before.astype(int)).max() <= 1
    assert set(sizes(eager)) == {8} and compiled.denoiser.network.programs == 1  # 4 and 3 rows, guided


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_samples_are_the_samples(name, unchecked):
    torch._dynamo.reset()
    plain = pipeline(name)
    labels = torch.tensor([0, 1, 2, 1, 0])

    def sampled(rows, scale):
        denoiser = ClassifierFree(plain.denoiser, scale).given(label=labels[:rows])
        x = denoiser.prior(range(rows), plain.shape)
        return samplers.sample(denoiser, plain.sampler("dpm++"), x, plain.times(4), range(rows))

    cases = [(5, 2.0), (3, 2.0), (5, 1.0)]
    before = [sampled(*case) for case in cases]
    plain.compile()
    for case, expected in zip(cases, before, strict=True):
        assert_close(sampled(*case), expected, rtol=1e-3, atol=1e-3)
    assert plain.denoiser.network.programs == 1 and plain.warmup_seconds > 0  # 10 rows serve 6 and 5 as well
    frozen = torch._dynamo.utils.counters["frames"]["total"]
    sampled(4, 2.0)
    assert torch._dynamo.utils.counters["frames"]["total"] == frozen
    torch._dynamo.reset()
