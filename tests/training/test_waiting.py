"""No step of training waits for the device: the host runs ahead of it, from batch to averaged weights."""

import contextlib
import importlib

import pytest
import torch
from torch import nn

from undiffuse import Denoiser
from undiffuse.conditioning import Augmentation, Conditioner, Label
from undiffuse.data import Augment, Dataset, Flip, Geometric, RandomCrop
from undiffuse.data.feed import Feed
from undiffuse.networks import DiT, UNet
from undiffuse.objective import OBJECTIVES, TIME_LAWS, WEIGHTS, Objective
from undiffuse.schedule import Cosine
from undiffuse.training import TrainState
from undiffuse.training.loop import train
from waiting import Waits, no_waiting

META = torch.device("meta")


@pytest.fixture(autouse=True)
def meta_device(monkeypatch, unchecked):
    """What torch itself does not know of the meta device: autocast, and that its optimizer could be fused."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(
        importlib.import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices", lambda: ["meta"]
    )


class Affine(nn.Module):
    """A network of one layer, where the question is what the objective does."""

    embedding_width = 2

    def __init__(self, learned_variance=False):
        super().__init__()
        self.learned_variance = learned_variance
        self.layer = nn.Conv2d(3, 6 if learned_variance else 3, 1)

    def forward(self, x, c_noise, vector):
        return self.layer(x) + c_noise[:, None, None, None] + vector[:, :1, None, None]


def denoiser(network):
    parts = {"label": Label(3, network.embedding_width), "augmentation": Augmentation(network.embedding_width)}
    return Denoiser(network, Cosine(), conditioner=Conditioner(parts)).to(META)


def feed(steps, told=()):
    samples = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    dataset = Dataset("zeros", samples, {"label": torch.arange(8) % 3}, {"label": ("a", "b", "c")})
    return Feed(dataset, lambda x: x / 127.5 - 1, Augment(steps), 4, 0, META, told=told)


def unet():
    return UNet(3, width=8, multipliers=(1, 2), blocks=1, attention=(False, True), head_width=8)


def steps_taken(model, objective, batches, count=2):
    state = TrainState(model, objective.to(META), 1e-3, 0.01)
    state.total = count
    with no_waiting():
        loop = train(state, batches.batch, learning_rate=1e-3, warmup=1, clip=1.0, ema_width=0.1)
        return [loss.device.type for loss in loop]


def test_the_check_finds_what_waits():
    x, index = torch.zeros(4, 2, device=META), torch.tensor([0, 1])
    for waits in (
        lambda: torch.ones(4, 2).to(META),
        lambda: torch.tensor([1.0], device=META),
        lambda: x[index],
        lambda: x.copy_(torch.ones(4, 2)),
    ):
        with pytest.raises(Waits), no_waiting():
            waits()
    for waits in (lambda: bool(x.any()), lambda: x.cpu(), lambda: x[x > 0], lambda: float(x.sum())):
        with pytest.raises((RuntimeError, NotImplementedError)), no_waiting():
            waits()
    with no_waiting():
        x.copy_(torch.ones(4, 2).to(META, non_blocking=True) * torch.tensor(2.0))


@pytest.mark.parametrize("network", [unet, lambda: DiT(3, width=16, depth=1, heads=2)], ids=["unet", "dit"])
def test_no_step_of_training_waits(network):
    objective = Objective("min-snr", drop=0.1, drop_each={"label": 0.1}, offset=0.1, uncertainty=True)
    batches = feed([RandomCrop(8, 8), Flip(), Geometric(0.5)], ["augmentation"])
    assert steps_taken(denoiser(network()), objective, batches) == ["meta"] * 2


@pytest.mark.parametrize("law", sorted(TIME_LAWS.keys() - {"table"}))
def test_no_time_law_waits(law):
    assert steps_taken(denoiser(Affine()), Objective(times=law), feed([])) == ["meta"] * 2


@pytest.mark.parametrize("weight", WEIGHTS)
def test_no_weight_waits(weight):
    assert steps_taken(denoiser(Affine()), Objective(weight), feed([])) == ["meta"] * 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_learned_variance_waits(objective):
    assert steps_taken(denoiser(Affine(learned_variance=True)), OBJECTIVES[objective](), feed([])) == ["meta"] * 2
