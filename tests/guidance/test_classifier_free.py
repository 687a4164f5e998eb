"""Classifier-free guidance: exact at its ends, linear between and beyond, the same in every parameterization."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label
from undiffuse.exact import Gaussian, Mixture
from undiffuse.guidance import ClassifierFree
from undiffuse.prediction import PREDICTIONS, named
from undiffuse.samplers import DPMSolverPlusPlus, grid, sample
from undiffuse.schedule import Cosine, Flow

X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.1, 0.3, 0.6, 0.9])
LABELS = torch.tensor([0, 2, 1, 2])


class Toy(nn.Module):
    """Elementwise, so that results can be compared bit for bit between batches."""

    def forward(self, x, c_noise, vector):
        return torch.tanh(x * c_noise[:, None, None, None] / 1000) + vector[:, :, None, None] * (1 + x)


def denoiser(predicts="v"):
    torch.manual_seed(0)
    return Denoiser(Toy(), Cosine(), predicts, conditioner=Conditioner({"label": Label(3, 3)}))


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_scale_one_is_the_conditional_and_zero_the_unconditional_bit_for_bit(predicts):
    plain = denoiser(predicts)
    for scale, condition in ((0.0, {}), (1.0, {"label": LABELS})):
        guided = ClassifierFree(plain, scale).given(label=LABELS)(X, T)
        expected = plain(X, T, plain.encode(condition))
        for what in ("output", "x0", "noise", "v", "score", "flow"):
            assert torch.equal(getattr(guided, what), getattr(expected, what))


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("scale", [-0.5, 0.4, 3.0])
def test_guidance_extrapolates_from_null_to_condition_in_every_parameterization(predicts, scale):
    plain = denoiser(predicts)
    x = X.double()
    guided = ClassifierFree(plain, scale).given(label=LABELS)(x, T)
    null, given = plain(x, T), plain(x, T, plain.encode({"label": LABELS}))
    for name in ("x0", "noise", "v", "score", "flow"):
        without, condition = getattr(null, name), getattr(given, name)
        assert_close(getattr(guided, name), without + scale * (condition - without))
        # the other convention in use, where w = 0 is the conditional, not the unconditional
        w = scale - 1
        assert_close(getattr(guided, name), (1 + w) * condition - w * without)


def test_scales_may_differ_per_sample_and_a_condition_may_be_one_for_all():
    plain, scales = denoiser(), torch.tensor([0.0, 1.0, 2.5, 7.0])
    together = ClassifierFree(plain, scales).given(label=LABELS)(X, T).x0
    for i, scale in enumerate(scales):
        alone = ClassifierFree(plain, float(scale)).given(label=LABELS[i])(X[i : i + 1], float(T[i])).x0
        assert torch.equal(together[i], alone[0])
    one, each = (ClassifierFree(plain, 3.0).given(label=label)(X, T).x0 for label in (2, [2, 2, 2, 2]))
    assert torch.equal(one, each)


CENTRES = torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
SPREADS = torch.stack([0.3 * torch.eye(2), 0.1 * torch.eye(2)]).double()


class Classes(nn.Module):
    """Labels as they are; the null is 2."""

    def encode(self, condition, drop=None):
        labels = torch.as_tensor(condition.get("label", 2)).reshape(-1)
        return {"label": labels if drop is None else labels.masked_fill(drop, 2)}


class ExactNetwork(nn.Module):
    """x0_hat of a labelled mixture, told its level by log-snr."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        self.experts = [Gaussian(schedule, *parts) for parts in zip(CENTRES, SPREADS, strict=True)]
        self.experts.append(Mixture(schedule, torch.ones(2), CENTRES, SPREADS))

    def forward(self, x, c_noise, label):
        t = self.schedule.time(-8 * c_noise)
        estimates = torch.stack([expert(x, t).x0 for expert in self.experts])
        return estimates[label, torch.arange(len(x))]


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=repr)
def test_on_a_labelled_mixture_the_guided_score_is_that_of_the_tilted_density(schedule):
    """grad [ log p(x) + scale (log p(x | y) - log p(x)) ]."""
    network = ExactNetwork(schedule)
    plain = Denoiser(network, schedule, named("x0", label="log-snr"), conditioner=Classes())
    x, t = X.flatten(1)[:, :2].double().requires_grad_(), T.double()
    labels, scales = torch.tensor([0, 1, 1, 0]), torch.tensor([0.0, 1.0, 2.0, 5.0])
    whole = network.experts[2].log_prob(x, t)
    given = torch.stack([expert.log_prob(x, t) for expert in network.experts[:2]])[labels, torch.arange(4)]
    (expected,) = torch.autograd.grad((whole + scales * (given - whole)).sum(), x)
    with torch.no_grad():
        assert_close(ClassifierFree(plain, scales).given(label=labels)(x, t).score, expected, rtol=1e-6, atol=1e-8)


def test_guided_samples_do_not_depend_on_their_batch():
    schedule = Cosine()
    plain = Denoiser(ExactNetwork(schedule), schedule, named("x0", label="log-snr"), conditioner=Classes())
    times, seeds = grid.named("log-snr", schedule, 8, plain.t_min, 1.0), torch.arange(6)
    labels = seeds % 2

    def run(chosen):
        guided = ClassifierFree(plain, 2.0).given(label=labels[chosen])
        return sample(guided, DPMSolverPlusPlus(), plain.prior(seeds[chosen], (2,), torch.float64), times)

    whole = run(torch.arange(6))
    for chosen in ([4], [5, 0, 3]):
        assert_close(run(torch.tensor(chosen)), whole[chosen], rtol=1e-10, atol=1e-10)


def test_guidance_needs_a_condition_and_a_finite_scale():
    with pytest.raises(InputError, match="needs a condition"):
        ClassifierFree(denoiser(), 2.0)(X, T)
    with pytest.raises(InputError, match="finite, not nan"):
        ClassifierFree(denoiser(), float("nan"))
    with pytest.raises(InputError, match="knows"):
        ClassifierFree(denoiser(), 2.0).given(label=1)(X, 0.0)
