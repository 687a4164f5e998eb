"""A run that is told how its pictures were augmented: trained, resumed, sampled as if it had not been."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import undiffuse as ud
from tiny import tiny, train
from undiffuse.cli.conditions import given_conditions
from undiffuse.conditioning import Augmentation, Conditioner, Label
from undiffuse.errors import InputError
from undiffuse.experiment import Experiment, augmentation
from undiffuse.networks import UNet
from undiffuse.objective import Objective
from undiffuse.schedule import Cosine
from undiffuse.training import checkpoints

TOLD = ("condition.augmentation=augmentation", "condition.augmentation.probability=0.5")


def told(folder: Path, *overrides: str) -> Experiment:
    return tiny(folder, *TOLD, *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    made = told(tmp_path_factory.mktemp("runs") / "told")
    train(made)
    return made


def test_it_trains_is_resumed_to_the_same_bits_and_is_told(trained: Experiment, tmp_path: Path) -> None:
    train(told(tmp_path / "halves"), until=5)
    stopped = told(tmp_path / "halves")
    assert stopped.resumed and stopped.state.step < 12
    train(stopped)
    ours, theirs = (load_file(checkpoints(folder)[-1]) for folder in (trained.folder, tmp_path / "halves"))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    untrained = told(tmp_path / "untrained").pipeline.denoiser.conditioner.parts["augmentation"].project.weight
    moved = trained.state.model.conditioner.parts["augmentation"].project.weight - untrained
    assert (moved.abs().amax(0) > 1e-4).all()  # by each of the numbers
    assert (
        augmentation(trained.recipe, trained.pipeline.shape, trained.pipeline.told.values()).steps[-1].probability
        == 0.5
    )


def test_it_is_sampled_as_if_nothing_had_been_done_and_never_asked_for(trained: Experiment) -> None:
    model = ud.load(trained.folder)
    assert list(model.parts) == ["label"] and list(model.told) == ["augmentation"]
    nothing = model.denoiser.encode({"label": [3], "augmentation": torch.zeros(1, 9)})["vector"]
    assert torch.equal(model.denoiser.encode({"label": [3]})["vector"], nothing)
    assert torch.equal(nothing, model.parts["label"](torch.tensor([3])))
    assert model.sample(2, label=3, guidance=2.0, steps=2).shape == (2, 8, 8)
    with pytest.raises(InputError, match="unknown condition 'augmentation'"):
        model.sample(1, augmentation=torch.zeros(1, 9))
    with pytest.raises(InputError, match="unknown condition 'augmentation'"):
        given_conditions(model, None, ["augmentation=1"], 1)


def test_a_model_of_nothing_else_is_unconditional(tmp_path: Path) -> None:
    made = tiny(
        tmp_path / "run", "condition={augmentation: {name: augmentation, probability: 0.3}}", "objective.drop=0"
    )
    for _ in made.train():  # with its preview, and the recipe's guidance of 1.25 left alone
        pass
    model = ud.load(tmp_path / "run")
    assert not model.parts and model.sample(2, steps=2).shape == (2, 8, 8)
    with pytest.raises(InputError, match="unconditional, but was given augmentation"):
        model.sample(1, augmentation=torch.zeros(1, 9))
    with pytest.raises(InputError, match="guidance=3 needs a condition"):
        model.sample(1, guidance=3)


def test_the_null_leaves_the_network_as_it_is_bit_for_bit() -> None:
    torch.manual_seed(0)
    network = UNet(1, 8, (1, 2), 1, embedding=8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    part, x = Augmentation(8), torch.randn(3, 1, 4, 4)
    ours = ud.Denoiser(network, Cosine(), conditioner=Conditioner({"done": part}))
    plain = ud.Denoiser(network, Cosine())
    assert torch.equal(ours(x, 0.5).output, plain(x, 0.5).output)
    described = ours(x, 0.5, ours.encode({"done": torch.randn(3, 9)})).output
    assert ((described - plain(x, 0.5).output).abs().amax((1, 2, 3)) > 1e-4).all()


def test_it_is_never_dropped() -> None:
    label, part, values = Label(5, 8), Augmentation(8), torch.randn(3, 9)
    conditioner = Conditioner({"label": label, "done": part})
    given = {"label": torch.tensor([0, 4, 2]), "done": values}
    for drop in (torch.ones(3, dtype=torch.bool), torch.ones(1, dtype=torch.bool)):
        assert torch.equal(conditioner.encode(given, drop)["vector"], label.null() + part(values))
    denoiser = ud.Denoiser(UNet(1, 8, (1, 2), 1, embedding=8), Cosine(), conditioner=conditioner)
    assert denoiser.droppable == ("label",)
    for parameter in denoiser.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    loss = Objective(drop=1.0)(denoiser, torch.randn(3, 1, 4, 4), given)
    loss.sum().backward()
    assert part.project.weight.grad.abs().max() > 0 and label.embedding.weight.grad[:5].abs().max() == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["condition.augmentation.probability=1.5"], r"must be in \[0, 1\], not 1.5"),
        (["condition.augmentation.probablity=0.5"], "unknown argument .*'probablity'"),
        (["condition.augmentation.optional=false"], "unknown argument .*'optional'"),
        (["objective.drop_each={augmentation: 0.1}"], "drops 'augmentation', which is told in training alone"),
        (["condition.again=augmentation"], "augmented once, but augmentation and again"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        told(tmp_path / "run", *overrides)


def test_what_describes_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(B, 9\) numbers, not \(1, 8\)"):
        Augmentation(4).read(np.zeros(8))
