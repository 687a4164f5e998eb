"""Loading and sampling: the same picture from the same seed, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse import InputError
from undiffuse.networks import UNet


@pytest.fixture(scope="module")
def pipeline(run: Path) -> ud.Pipeline:
    return ud.load(run)


def test_samples_are_uint8_of_the_data_shape(pipeline: ud.Pipeline) -> None:
    images = pipeline.sample(3, label=[1, 2, 3], steps=3)
    assert images.dtype == np.uint8
    assert images.shape == (3, 8, 8)


@pytest.mark.parametrize("solver", ud.samplers.SAMPLERS)
def test_a_seed_is_a_picture_in_any_batch(pipeline: ud.Pipeline, solver: str) -> None:
    how = {"label": 7, "steps": 4, "sampler": solver, "guidance": 2.0}
    together = pipeline.sample(5, seed=10, **how)
    split = pipeline.sample(5, seed=10, batch_size=2, **how)
    alone = pipeline.sample(1, seed=13, **how)
    # a level of 255 may round either way where float32 differs in its last digits
    assert np.abs(together.astype(int) - split.astype(int)).max() <= 1
    assert np.abs(together[3].astype(int) - alone[0].astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[1].astype(int)).max() > 1


def test_other_sizes_than_trained_at(pipeline: ud.Pipeline) -> None:
    assert pipeline.sample(1, label=0, steps=2, shape=(1, 12, 16)).shape == (1, 12, 16)
    with pytest.raises(InputError, match=r"height must be a multiple of 2 .* not 9: use 8 or 10"):
        pipeline.sample(1, label=0, shape=(1, 9, 8))


def test_walk_starts_at_the_prior_and_ends_at_data(pipeline: ud.Pipeline) -> None:
    states = list(pipeline.walk([0, 1], condition={"label": 3}, steps=4))
    assert len(states) == len(pipeline.times(4)) == 5
    assert torch.equal(states[0], pipeline.denoiser.prior([0, 1], pipeline.shape))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"label": 10}, "label 10 is out of range: the model knows 0 to 9"),
        ({"label": -1}, "label -1 is out of range"),
        ({"label": [1, 2]}, "2 values of label were given for 4 samples"),
        ({"label": 1.5}, "labels must be integers"),
        ({"label": 1, "sampler": "dpm+"}, "did you mean 'dpm\\+\\+'"),
        ({"label": 1, "grid": "karass"}, "did you mean 'karras'"),
        ({"label": 1, "steps": 0}, "at least 1 step"),
        ({"label": 1, "seed": -3}, "seed must be 0 or more .* not -3"),
        ({"guidance": 3.0}, "needs a condition"),
        ({"vector": [1.0]}, "unknown condition 'vector'"),
    ],
)
def test_bad_requests_are_refused(pipeline: ud.Pipeline, how: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.sample(4, **how)
    with pytest.raises(InputError, match="at least 1, not 0"):
        pipeline.sample(0)


def test_a_network_of_your_own_is_filled(run: Path, pipeline: ud.Pipeline) -> None:
    network = UNet(channels=1, width=16, multipliers=(1, 2), blocks=1)
    loaded = ud.load(run, network=network)
    assert loaded.denoiser.network is network
    assert np.array_equal(loaded.sample(2, label=1, steps=2), pipeline.sample(2, label=1, steps=2))
    with pytest.raises(InputError, match="does not fit this model: network"):
        ud.load(run, network=UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, embedding=64))


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run folder .* runs there: tiny"):
        ud.load(run.parent / "tinny")
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(InputError, match=r"no model.safetensors yet"):
        ud.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:500])
    with pytest.raises(InputError, match=r"model.safetensors is truncated"):
        ud.load(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"recipe.yaml cannot be read"):
        ud.load(tmp_path)
