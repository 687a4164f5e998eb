"""The bits/dimension of data under a model: what is refused, shards, and exact models."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from undiffuse import Denoiser, InputError, Pipeline
from undiffuse.bits_per_dim import BitsPerDim, Settings, measure, merged
from undiffuse.codecs import Pixels
from undiffuse.data import Dataset
from undiffuse.exact import Gaussian, Mixture
from undiffuse.prediction import X0
from undiffuse.samplers import Adaptive, Heun
from undiffuse.schedule import Cosine

SHAPE = (1, 4, 4)
STD = 0.35
SETTINGS = Settings(tolerance=1e-3, exact=False, probes=2, draws=12, chain=2000)


class Network(torch.nn.Module):
    """An exact denoiser, as a network that predicts x_0."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact

    def forward(self, x, c_noise):
        return self.exact(x, c_noise.double() / 1000).x0.to(x)


@pytest.fixture(scope="module")
def model():
    exact = Gaussian(Cosine(), torch.zeros(16).double(), torch.full((16,), STD**2).double())
    return Pipeline(Denoiser(Network(exact), Cosine(), X0()), Pixels(), SHAPE)


@pytest.fixture(scope="module")
def data():
    x = STD * torch.randn(60, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-2.8, 2.8)
    return Dataset("gauss", ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


@pytest.fixture(scope="module")
def whole(model, data):
    return measure(model, data, torch.arange(8), SETTINGS)


def test_all_three_ways_come_near_the_entropy_of_the_values(model, data, whole):
    """A Gaussian far wider than a bin: -log2 of its density and of the bin, by D."""
    x = data.samples[:8].double() / 127.5 - 1
    true = (0.5 * (x / STD).square() + math.log(STD * math.sqrt(2 * math.pi))).flatten(1).mean(1) / math.log(2)
    true = float((true + math.log2(127.5)).mean())
    found = whole.summary()
    assert found["ode"]["bits_per_dim"] == pytest.approx(true, abs=0.02)
    assert found["continuous_bound"]["bits_per_dim"] == pytest.approx(true + 0.1, abs=0.25)
    assert found["discrete_bound"]["bits_per_dim"] == pytest.approx(true + 0.1, abs=0.25)
    for name in ("ode", "continuous_bound", "discrete_bound"):
        assert sum(found[name]["terms"].values()) == pytest.approx(found[name]["bits_per_dim"], abs=1e-9)
    assert found["ode"]["estimate_error"] < 1e-6  # the Jacobian is diagonal
    assert found["n"] == 8 and found["settings"]["probes"] == 2


def test_shards_are_the_whole_and_batches_change_nothing(model, data, whole):
    parts = [measure(model, data, torch.arange(8)[i::2], SETTINGS, batch_size=4) for i in range(2)]
    together = merged(parts[::-1])
    assert together.about == whole.about
    for name, values in whole.columns.items():
        assert_close(together.columns[name], values, rtol=1e-4, atol=1e-4)
    assert torch.equal(together.columns["row"], whole.columns["row"])
    with pytest.raises(InputError, match="4 samples come twice"):
        merged([*parts, parts[0]])
    with pytest.raises(InputError, match=r"differ in seed \(0 and 1\) cannot"):
        merged([parts[0], measure(model, data, torch.tensor([1]), replace(SETTINGS, seed=1))])
    with pytest.raises(InputError, match="nothing to merge"):
        merged([])


def shards(model, data, count):
    """Each of 2 samples, as read from a file."""
    rows = torch.arange(2 * count)
    for i in range(count):
        found = measure(model, data, rows[i::count], replace(SETTINGS, tolerance=0.1, draws=1, probes=1))
        found = replace(found, about=found.about | {"part": "held-out", "asked": len(rows)}, shard=(i + 1, count))
        yield BitsPerDim.from_json(json.loads(json.dumps(found.to_json())))


def test_shards_of_different_measurements_or_too_few_are_refused(model, data):
    first, second, third = shards(model, data, 3)
    assert (first.shard, first.about["part"], first.about["data_n"]) == ((1, 3), "held-out", 60)
    assert merged([third, first, second]).columns["row"].tolist() == list(range(6))
    assert merged([third, first, second]).shard == (1, 1)
    with pytest.raises(InputError, match=r"of 3 shards these are missing: 1/3, 3/3"):
        merged([second])
    others = {"weights": "0", "part": "train", "asked": 9, "data_n": 61, "undiffuse": "0.0", "data_hash": "f"}
    for name, value in others.items():
        with pytest.raises(InputError, match=rf"differ in {name} \(.* and {value}\) cannot be merged"):
            merged([first, second, replace(third, about=third.about | {name: value})])
    with pytest.raises(InputError, match=r"differ in shards \(3 and 2\)"):
        merged([first, replace(second, shard=(2, 2))])


def test_other_weights_are_told_apart(model, data):
    network = torch.nn.Conv2d(1, 1, 1)
    about = []
    for bias in (0.0, 0.1):
        torch.nn.init.constant_(network.bias, bias)
        other = Pipeline(Denoiser(Timeless(network), Cosine(), X0()), Pixels(), SHAPE)
        about.append(measure(other, data, torch.arange(1), Settings("heun", steps=2, draws=1, chain=2)).about)
    assert about[0].pop("weights") != about[1].pop("weights") and about[0] == about[1]


class Timeless(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, c_noise):
        return self.network(x)


def test_the_seed_and_the_row_are_all_that_a_sample_draws_by(model, data, whole):
    again = measure(model, data, torch.tensor([6, 3]), SETTINGS)
    assert_close(again.columns["ode"], whole.columns["ode"][[6, 3]], rtol=1e-5, atol=1e-5)
    other = measure(model, data, torch.tensor([6, 3]), replace(SETTINGS, seed=100))
    assert (other.columns["continuous"] - again.columns["continuous"]).abs().min() > 1e-4


def test_it_is_stored_and_read_and_ranked(whole):
    text = json.dumps(whole.to_json(), allow_nan=False)
    read = BitsPerDim.from_json(json.loads(text))
    assert read.about == whole.about
    for name, values in whole.columns.items():
        assert torch.equal(read.columns[name], values), name
    ranked = whole.ranked()
    assert whole.columns["ode"][ranked[0]] == whole.columns["ode"].min()
    assert sorted(ranked.tolist()) == list(range(8))
    curve = json.loads(text)["rate_distortion"]
    assert len(curve["rate"]) == 12 and curve["rate"][0] < curve["rate"][-1]
    with pytest.raises(InputError, match="no file of likelihoods"):
        BitsPerDim.from_json({"samples": {}})
    for name, value in {"settings": 3, "shard": [1], "weights": None}.items():
        stored = {**whole.to_json(), name: value}
        if value is None:
            del stored[name]
        with pytest.raises(InputError, match="no file of likelihoods"):
            BitsPerDim.from_json(stored)


def test_the_reported_errors_are_those_of_the_estimate():
    """Of correlated pixels, where probes differ; all else is as with the exact divergence, and cancels."""
    root = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double() / 4
    covariance = 0.1 * root @ root.T + 0.02 * torch.eye(16).double()
    exact = Mixture(Cosine(), torch.ones(1), torch.zeros(1, 16), covariance[None])
    correlated = Pipeline(Denoiser(Network(exact), Cosine(), X0()), Pixels(), SHAPE)
    x = exact.draw(80, torch.Generator().manual_seed(2)).view(80, *SHAPE)
    data = Dataset("correlated", ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    settings = Settings("heun", steps=12, exact=False, probes=4, draws=1, chain=2)
    found = measure(correlated, data, torch.arange(80), settings)
    true = measure(correlated, data, torch.arange(80), replace(settings, exact=True, probes=1))
    missed, errors = found.columns["ode"] - true.columns["ode"], found.columns["ode_error"]
    root_mean_square = float(errors.square().mean().sqrt())
    assert 0.75 < root_mean_square / float(missed.square().mean().sqrt()) < 1.33
    reported = found.summary()["ode"]["estimate_error"]
    assert reported == pytest.approx(root_mean_square / math.sqrt(80), rel=1e-9)
    assert abs(float(missed.mean())) < 4 * reported


def test_one_probe_has_no_known_error(model, data):
    found = measure(model, data, torch.arange(2), replace(SETTINGS, probes=1, draws=2, tolerance=1e-2))
    assert found.summary()["ode"]["estimate_error"] is None
    read = BitsPerDim.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert bool(read.columns["ode_error"].isnan().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "ddpm"}, "draws noise"),
        ({"sampler": "heun", "tolerance": 1e-3}, "a tolerance is of the sampler adaptive"),
        ({"steps": 10}, "steps=10 are of samplers with fixed ones"),
        ({"sampler": "heun@karras"}, "leave the grid 'karras' out"),
        ({"exact": True, "probes": 2}, "leave probes=2 out"),
        ({"probes": 0}, "1 probe"),
        ({"chain": 1}, "a chain of 2 steps or more"),
        ({"dequantisation": "normal"}, "Known: uniform, truncated-normal"),
        ({"seed": -1}, "seed must be in"),
        ({"tolerance": 0.0}, "tolerances must be"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Settings(**arguments)


def test_settings_name_the_sampler():
    assert Settings().solver() == Adaptive(rtol=1e-4, atol=1e-4)
    assert Settings(tolerance=1e-3).solver() == Adaptive(rtol=1e-3, atol=1e-3)
    assert Settings("adaptive:rtol=1e-2,pair=bosh3").solver() == Adaptive(rtol=1e-2, pair="bosh3")
    assert Settings("heun", steps=7).solver() == Heun()
    assert len(Settings("heun", steps=7).times(Gaussian(Cosine(), torch.zeros(1), torch.ones(1)))) == 8


def test_data_of_another_kind_are_refused(model, data):
    with pytest.raises(InputError, match="samples of 3x4x4 cannot be measured by a model of 1x4x4"):
        measure(model, Dataset("rgb", torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), torch.arange(2))
    with pytest.raises(InputError, match="no sample to measure"):
        measure(model, data, torch.arange(0))
