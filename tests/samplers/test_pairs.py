"""Every sampler with every prediction, schedule, grid and wrapper, in float32 and bf16; compiled; without waits."""

import contextlib
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser
from undiffuse.conditioning import Conditioner, Label
from undiffuse.exact import Mixture
from undiffuse.guidance import ClassifierFree
from undiffuse.networks import UNet
from undiffuse.noise import NoiseSource
from undiffuse.prediction import PREDICTIONS, Level
from undiffuse.prediction import named as prediction
from undiffuse.samplers import DDPM, DEIS, GRIDS, PNDM, Adaptive, EulerMaruyama, Langevin, grid, named, sample, walk
from undiffuse.schedule import SCHEDULES, Cosine, Linear
from undiffuse.schedule import named as schedule_named
from waiting import no_waiting

MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.2]], dtype=torch.float64)
Z = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def mixture(schedule):
    return Mixture(schedule, torch.ones(3), MEANS, 0.2 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2))


class Perfect(nn.Module):
    """A network that has learnt a mixture, in any parameterization."""

    def __init__(self, schedule, predicts, dtype=torch.float32):
        super().__init__()
        self.exact, self.prediction, self.dtype = mixture(schedule), predicts, dtype

    def forward(self, x, c_noise):
        level = Level(self.exact.schedule, c_noise.double() / 1000)
        x = x.double() / self.prediction.c_in(level)[:, None]
        estimate, (of_x0, of_noise) = self.exact(x, level.t), self.prediction.target(level)
        return (of_x0[:, None] * estimate.x0 + of_noise[:, None] * estimate.noise).to(self.dtype)


def learnt(predicts, dtype=torch.float32):
    chosen = prediction(predicts, label="time")
    return Denoiser(Perfect(Cosine(), chosen, dtype), Cosine(), chosen)


OWN_TIMES = torch.stack([grid.named("log-snr", Cosine(), 5, 0.01 * (1 + i), 0.8 - 0.1 * i) for i in range(3)], 1)


def loosened(sampler):
    """Tolerances that float32 can meet in few steps."""
    return Adaptive(1e-3, 1e-3, sampler.pair) if isinstance(sampler, Adaptive) else sampler


def test_all_predictions_of_one_model_give_the_same_samples(any_sampler):
    sampler = loosened(any_sampler)
    exact = sample(mixture(Cosine()), sampler, Z, OWN_TIMES, range(3)).float()
    tolerance = 5e-3 if isinstance(any_sampler, Adaptive) else 1e-3  # where rounding moves the steps
    for predicts in PREDICTIONS:
        samples = sample(learnt(predicts), sampler, Z.float(), OWN_TIMES, range(3))
        assert samples.dtype == torch.float32
        assert_close(samples, exact, rtol=tolerance, atol=tolerance, msg=predicts)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_outputs_in_half_precision_cost_half_the_digits_and_no_more(predicts):
    for name in ("dpm++", "adams", "ddpm"):
        wide, half = (
            sample(learnt(predicts, d), named(name), Z.float(), OWN_TIMES, range(3))
            for d in (torch.float32, torch.bfloat16)
        )
        assert half.dtype == torch.float32
        assert_close(half, wide, rtol=0.05, atol=0.05)


def test_samples_do_not_depend_on_the_schedule_at_equal_levels(any_sampler):
    """In x / hypot(alpha, sigma) over the log-SNR all schedules are one; but for solvers in the schedule's own time."""
    sampler = loosened(any_sampler)
    own = (PNDM, EulerMaruyama, Langevin)
    if isinstance(any_sampler, own) or any_sampler in [DDPM("beta"), *(DEIS(p) for p in (2, 3, 4))]:
        pytest.skip("works in the schedule's own time or scale")
    levels, ends = torch.linspace(-4, 5, 6, dtype=torch.float64), []
    for name in SCHEDULES:
        if name == "table":
            continue
        schedule = schedule_named(name)
        times = torch.cat([schedule.time(levels), torch.zeros(1, dtype=torch.float64)])
        x = Z * torch.hypot(schedule.alpha(times[0]), schedule.sigma(times[0]))
        ends.append(sample(mixture(schedule), sampler, x, times, range(3)))
        tolerance = 5e-3 if isinstance(any_sampler, Adaptive) else 1e-7
        assert_close(ends[-1], ends[0], rtol=tolerance, atol=tolerance, msg=name)


def test_every_grid_is_walked(any_sampler):
    denoiser, sampler = mixture(Linear()), loosened(any_sampler)
    for name in GRIDS:
        for steps in (1, 2, 7):
            times = grid.named(name, denoiser.schedule, steps, denoiser.t_min, 1.0)
            samples = sample(denoiser, sampler, Z, times, range(3))
            assert samples.isfinite().all(), (name, steps)
        # steps even in time are too long near noise for solvers over sigma / alpha; all are for the noise form's SDE
        noisy = any_sampler.stochastic and getattr(any_sampler, "form", None) == "noise"
        if name in ("log-snr", "karras") and not noisy:
            assert samples.abs().max() < 5, name


class Toy(nn.Module):
    def forward(self, x, c_noise, vector):
        return torch.sin(x + vector) * (1 + vector[:, :1] * c_noise[:, None] / 1000)


def test_guidance_with_times_labels_and_scales_per_sample_is_that_of_each_alone(any_sampler):
    torch.manual_seed(0)
    plain, sampler = Denoiser(Toy(), Cosine(), conditioner=Conditioner({"label": Label(3, 2)})), loosened(any_sampler)
    labels, scales, x = torch.tensor([0, 2, 1]), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), Z.float()
    together = sample(ClassifierFree(plain, scales).given(label=labels), sampler, x, OWN_TIMES, range(3))
    for i in range(3):
        guided = ClassifierFree(plain, float(scales[i])).given(label=labels[i])
        alone = sample(guided, sampler, x[i : i + 1], OWN_TIMES[:, i : i + 1], [i])
        assert_close(together[i], alone[0], rtol=1e-3, atol=1e-3)


# -- the device's clock -----------------------------------------------------------------------------------------------


class Pixelwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, c_noise):
        return x * self.scale * c_noise[:, None, None, None]


def test_no_step_waits_for_the_device(any_sampler, monkeypatch):
    """On the meta device there are no values, so what asks for one fails."""
    if isinstance(any_sampler, Adaptive):
        pytest.skip("asks for the size of its next step")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which does not know the device
    whole = any_sampler == named("ddim")
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1) if whole else Pixelwise()
    denoiser = Denoiser(network.to("meta"), Cosine())
    prior = torch.zeros(2, 1, 4, 4, device="meta")
    # the thousands of operations of a Brownian path take seconds under it
    with contextlib.nullcontext() if any_sampler.brownian else no_waiting():
        for x in walk(denoiser, any_sampler, prior, OWN_TIMES[:, :2], [1, 2]):
            assert x.device.type == "meta"


# -- torch.compile ----------------------------------------------------------------------------------------------------

FAMILIES = [
    "unipc:order=2",
    "dpm++-single:order=3",
    "ddpm",
    "churn",
    "ancestral",
    "langevin",
    "restart:low=0.1,high=0.5",
]


def stepped(denoiser, sampler, step, x, times):
    states = sampler.init(denoiser, x, times)
    noise = NoiseSource(range(len(x)), x.shape[1:], dtype=x.dtype) if sampler.stochastic else None
    with torch.no_grad():
        for t, s in pairwise(times):
            x, states = step(denoiser, x, t, s, states, noise)
    return x


@pytest.fixture
def fresh_compiler(unchecked):
    """Without the signatures' checks, which are no part of what is compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_compiled_step_is_the_step(name, fresh_compiler):
    sampler, denoiser = named(name), learnt("v")
    compiled = torch.compile(sampler.step, backend="eager")
    both = [stepped(denoiser, sampler, step, Z.float(), OWN_TIMES) for step in (sampler.step, compiled)]
    assert_close(*both, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unipc:order=2"])
def test_a_step_compiled_to_machine_code_is_the_step(name, fresh_compiler):
    torch.manual_seed(0)
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1)
    nn.init.normal_(network.head.weight, std=0.05)
    sampler, denoiser = named(name), Denoiser(network, Cosine())
    x = torch.randn(3, 1, 4, 4)
    compiled = torch.compile(sampler.step)
    both = [stepped(denoiser, sampler, step, x, OWN_TIMES) for step in (sampler.step, compiled)]
    assert_close(*both, rtol=1e-3, atol=1e-3)
