"""What a denoiser promises whatever its network: its range, times per sample, conditions, the prior."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label
from undiffuse.guidance import ClassifierFree
from undiffuse.prediction import EDM, PREDICTIONS
from undiffuse.schedule import Cosine, Flow, Linear


class Toy(nn.Module):
    """Elementwise, so a sample's result cannot depend on its batch; depends on all it is given."""

    def forward(self, x, c_noise, vector=None):
        shift = 0 if vector is None else vector.sum(1)[:, None, None, None]
        return torch.tanh(x + c_noise[:, None, None, None] / 1000) + shift


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_times_belong_to_samples_even_where_the_batch_is_as_large_as_the_image(predicts):
    denoiser = Denoiser(Toy(), Cosine(), predicts)
    x, t = torch.randn(4, 4, 4, 4, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    together = denoiser(x, t)
    for i in range(4):
        alone = denoiser(x[i : i + 1], float(t[i]))
        for name in ("x0", "noise", "v", "score", "flow"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0])
        x_t = together.level.alpha[i] * together.x0[i] + together.level.sigma[i] * together.noise[i]
        assert_close(x_t, x[i])


def test_the_denoiser_knows_its_range():
    denoiser, x = Denoiser(Toy(), Linear(), t_max=0.8), torch.zeros(2, 1, 4, 4)
    assert denoiser.t_min == 1 / 1000
    denoiser(x, 1 / 1000), denoiser(x, 0.8)
    for t in (0.0, 0.0005, 0.81, math.nan, torch.tensor([0.5, 0.9])):
        with pytest.raises(InputError, match=r"knows \[0.001, 0.8\] only"):
            denoiser(x, t)
    for t_min, t_max in ((0.5, 0.5), (0.0, 1.0), (0.1, 1.1)):
        with pytest.raises(InputError, match="t_min"):
            Denoiser(Toy(), Cosine(), t_min=t_min, t_max=t_max)
    with pytest.raises(InputError, match="did you mean 'noise'"):
        Denoiser(Toy(), Cosine(), "nois")


def test_the_default_range_of_continuous_time_ends_at_noise_of_two_thousandths():
    for schedule in (Cosine(), Flow()):
        t_min = Denoiser(Toy(), schedule).t_min
        assert_close(schedule.sigma(t_min) / schedule.alpha(t_min), torch.tensor(0.002).double(), rtol=1e-6, atol=0)


def test_conditions_are_encoded_expanded_and_null_when_missing():
    denoiser = Denoiser(Toy(), Cosine(), conditioner=Conditioner({"label": Label(3, 4)}))
    x = torch.randn(3, 1, 2, 2)
    one, each = denoiser.encode({"label": 1}), denoiser.encode({"label": [1, 1, 1]})
    assert one["vector"].shape == (1, 4)
    assert torch.equal(denoiser(x, 0.5, one).output, denoiser(x, 0.5, each).output)
    assert torch.equal(denoiser(x, 0.5).output, denoiser(x, 0.5, denoiser.encode({})).output)
    assert not torch.equal(denoiser(x, 0.5).output, denoiser(x, 0.5, one).output)
    given = denoiser.given(label=1)
    assert torch.equal(given(x, 0.5).output, denoiser(x, 0.5, one).output)
    assert (given.schedule, given.t_min, given.t_max) == (denoiser.schedule, denoiser.t_min, denoiser.t_max)
    with pytest.raises(InputError, match="label"):
        given.given(label=2)
    with pytest.raises(InputError, match="unconditional"):
        Denoiser(Toy(), Cosine()).given(label=2)


def test_the_prior_has_the_variance_of_the_noisiest_level():
    denoiser = Denoiser(Toy(), Linear(), t_max=0.5, data_std=3.0)
    alpha, sigma = denoiser.schedule.alpha(0.5), denoiser.schedule.sigma(0.5)
    assert math.isclose(denoiser.prior_std() ** 2, float(9 * alpha**2 + sigma**2))
    assert Denoiser(Toy(), Cosine(), EDM()).data_std == 0.5 and Denoiser(Toy(), Cosine(), "v").data_std == 1
    draws = denoiser.prior(range(50), (3, 8, 8))
    assert draws.shape == (50, 3, 8, 8) and draws.dtype == torch.float32
    assert abs(float(draws.std()) / denoiser.prior_std() - 1) < 5 / math.sqrt(2 * draws.numel())
    assert torch.equal(denoiser.prior([7, 3], (3, 8, 8)), draws[[7, 3]])


class TwiceTheChannels(nn.Module):
    """Says x doubled, and 2 r - 1 for r a quarter of the condition, or of 1."""

    learned_variance = True

    def forward(self, x, c_noise, vector):
        return torch.cat([2 * x, torch.ones_like(x) * (vector[:, :1, None, None] / 2 - 1)], 1)


def test_the_second_half_of_the_channels_is_the_fraction_of_the_variance():
    class Numbers(nn.Module):
        def encode(self, condition, drop=None):
            value = torch.as_tensor(condition.get("number", 1.0)).reshape(-1, 1)
            return {"vector": value if drop is None else torch.where(drop[:, None], 1.0, value)}

    denoiser = Denoiser(TwiceTheChannels(), Cosine(), "v", conditioner=Numbers())
    x = torch.randn(2, 3, 4, 4)
    estimate = denoiser.given(number=3.0)(x, 0.5)
    assert denoiser.learns_variance and torch.equal(estimate.output, 2 * x) and torch.equal(estimate.v, estimate.output)
    assert estimate.variance_fraction.shape == x.shape and (estimate.variance_fraction == 0.75).all()
    assert (denoiser(x, 0.5).variance_fraction == 0.25).all()
    guided = ClassifierFree(denoiser, 5.0).given(number=3.0)(x, 0.5)  # the variance is the conditional's, not guided
    assert (guided.variance_fraction == 0.75).all()
    assert Denoiser(Toy(), Cosine())(x, 0.5).variance_fraction is None


def test_a_network_that_gives_another_shape_is_refused_by_its_shapes():
    denoiser = Denoiser(TwiceTheChannels(), Cosine(), conditioner=None, learns_variance=False)
    with pytest.raises(InputError, match=r"gave \(2, 6, 4, 4\) for samples of \(2, 3, 4, 4\)"):
        denoiser(torch.randn(2, 3, 4, 4), 0.5, {"vector": torch.ones(2, 1)})
