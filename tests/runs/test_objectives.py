"""Every objective a recipe can name: it trains, goes on bit for bit, is saved whole, and samples."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import undiffuse as ud
from tiny import tiny, train
from undiffuse import InputError
from undiffuse.training import checkpoints

SLOW = ("p2", "uncertainty", "variational")
OBJECTIVES = {
    "p2": ["objective.weight=p2"],
    "bound, importance": ["objective.weight=bound", "objective.times=importance"],
    "uncertainty": ["prediction=edm", "objective.weight=edm", "objective.uncertainty=true"],
    "hybrid": ["prediction=noise", "network.learned_variance=true"],
    "variational": [
        "objective.name=variational",
        "network.learned_variance=true",
        "schedule=linear",
        "objective.times=table",
    ],
    "learned schedule": ["objective.weight=bound", "schedule=learned"],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OBJECTIVES])
def test_it_trains_goes_on_bit_for_bit_and_samples(tmp_path: Path, name: str) -> None:
    changes = OBJECTIVES[name]
    train(tiny(tmp_path / "whole", *changes, steps=8))
    train(tiny(tmp_path / "halves", *changes, steps=8), until=5)
    train(tiny(tmp_path / "halves", *changes, steps=8))
    ours, theirs = (load_file(checkpoints(tmp_path / folder)[-1]) for folder in ("whole", "halves"))
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    model = ud.load(tmp_path / "whole")
    sampler = "ddpm:variance=learned" if model.denoiser.learns_variance else None
    assert model.sample(2, label=1, steps=3, sampler=sampler, seed=0).shape == (2, 8, 8)


def test_a_learned_schedule_and_an_uncertainty_learn_and_are_kept(tmp_path: Path) -> None:
    made = tiny(tmp_path / "schedule", *OBJECTIVES["learned schedule"])
    before = made.pipeline.denoiser.schedule.heights.detach().clone()
    train(made, until=5)
    kept = ud.load(tmp_path / "schedule").denoiser.schedule.heights
    assert not torch.equal(before, kept) and kept.dtype == torch.float64
    train(tiny(tmp_path / "uncertainty", *OBJECTIVES["uncertainty"]), until=5)
    weight = load_file(checkpoints(tmp_path / "uncertainty")[-1])["objective.uncertainty.linear.weight"]
    assert weight.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective=variatonal"], "did you mean 'variational'"),
        (["objective.name=variational", "objective.offset=0.1"], "objective.offset has no meaning"),
        (["objective.name=variational", "objective.weight=min-snr"], "objective.weight has no meaning"),
        (["objective.weight=bound", "objective.times=log-normal"], "uniform time"),
        (["schedule=learned"], "weight=bound"),
        (["schedule=learned", "objective.weight=bound", "range.t_min=0.05"], "fixed ends"),
        (["schedule=learned", "schedule.shift=1.0", "objective.weight=bound"], "no shift"),
        (["objective=variational", "schedule=linear"], "time law table"),
        (["objective.weight=p2", "objective.weight.k=0"], "k above 0"),
        (["objective.steps=1"], "greater than or equal to 2"),
        (["objective.steps=10"], "objective.steps is of the bound"),
        (["objective.weight=edm", "objective.weight.data_std=0"], "above 0 and finite, not 0"),
        (["objective.weight=sigmoid", "objective.weight.bias=.nan"], "finite, not nan"),
        (["objective.times=log-normal", "objective.times.std=-1"], "finite std above 0"),
        (["objective.times=table"], "needs a schedule that is a table"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(tmp_path / "run", *changes)
    assert not (tmp_path / "run").exists()


def test_what_is_learned_beside_the_network_is_clipped_apart_and_not_decayed(tmp_path: Path, monkeypatch) -> None:
    clipped: list[list[int]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, most):
        clipped.append([id(parameter) for parameter in parameters])
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    made = tiny(tmp_path / "run", *OBJECTIVES["learned schedule"], steps=4)
    schedule = [id(parameter) for parameter in made.pipeline.denoiser.schedule.parameters()]
    train(made)
    assert clipped[1] == schedule and not set(schedule) & set(clipped[0]) and len(clipped) == 8
    assert [group["weight_decay"] for group in made.state.optimizer.param_groups] == [0.01, 0.0]
