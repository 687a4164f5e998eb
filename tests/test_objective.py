"""The training losses: their analytic minimum, weights, time laws and draws."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, Estimate, InputError, Objective
from undiffuse.conditioning import Conditioner, Label
from undiffuse.noise import NoiseSource
from undiffuse.objective import TIME_LAWS, WEIGHTS, Draws, LogitNormalTime, LogNormalTime, MinSNR
from undiffuse.prediction import PREDICTIONS, Level, named
from undiffuse.schedule import EDM, Cosine, Flow, Linear, Sigmoid, VariancePreserving

SD = 0.5


class GaussianNetwork(nn.Module):
    """E[F | x_t] for data from N(0, SD^2); reads the level from c_noise = -log_snr / 8."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction

    def forward(self, entrance, c_noise):
        level = Level(self.schedule, self.schedule.time(-8 * c_noise))
        x = entrance / self.prediction.c_in(level)[:, None]
        variance = (level.alpha**2 * SD**2 + level.sigma**2)[:, None]
        x0, noise = level.alpha[:, None] * SD**2 * x / variance, level.sigma[:, None] * x / variance
        a, b = self.prediction.target(level)
        return a[:, None] * x0 + b[:, None] * noise


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_simple_loss_of_the_exact_network_is_the_analytic_minimum(predicts):
    # With another draw of noise in the target than in the input, the loss of noise prediction would stay above 1.
    schedule, prediction = VariancePreserving(), named(predicts, label="log-snr")
    denoiser = Denoiser(GaussianNetwork(schedule, prediction), schedule, prediction, t_min=0.05)
    source = NoiseSource(range(2048), (32,), dtype=torch.float64)
    objective = Objective(times="stratified")
    loss = objective(denoiser, SD * source.normal("probe"), draws=objective.draw(denoiser, source))
    level = Level(schedule, torch.linspace(0.05, 1, 10001, dtype=torch.float64))
    a, b = prediction.target(level)
    minimum = (a * level.sigma - b * level.alpha) ** 2 * SD**2 / (level.alpha**2 * SD**2 + level.sigma**2)
    if predicts == "noise":
        assert_close(minimum, level.alpha**2 * SD**2 / (level.alpha**2 * SD**2 + level.sigma**2))
    expected = float(torch.trapezoid(minimum, level.t)) / 0.95
    assert abs(float(loss.mean()) - expected) < 5 * float(loss.std()) / math.sqrt(len(loss))
    assert abs(float(loss.mean()) - expected) < 0.05 * expected


def test_errors_of_x0_noise_and_v_are_one_error():
    level = Level(Cosine(), torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99]).double())
    snr = level.log_snr.exp()[:, None]
    x_t, output, error = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for predicts in PREDICTIONS:
        target = named(predicts).target
        right, wrong = Estimate(x_t, output, level, target), Estimate(x_t, output + error, level, target)
        x0_error = (wrong.x0 - right.x0) ** 2
        assert_close((wrong.noise - right.noise) ** 2 / snr, x0_error, rtol=1e-6, atol=0)
        assert_close((wrong.v - right.v) ** 2 / (snr + 1), x0_error, rtol=1e-6, atol=0)


# the factors on the error of (noise, x_0, v), for a variance-preserving schedule, l = log_snr
FACTORS = {
    "simple": (lambda snr: snr**0, lambda snr: snr**0, lambda snr: snr**0),
    "uniform": (lambda snr: 1 / snr, lambda snr: snr**0, lambda snr: 1 / (snr + 1)),
    "snr": (lambda snr: snr**0, lambda snr: snr, lambda snr: snr / (snr + 1)),
    "min-snr": (
        lambda snr: (5 / snr).clamp(max=1),
        lambda snr: snr.clamp(max=5),
        lambda snr: snr.clamp(max=5) / (snr + 1),
    ),
    "edm": (lambda snr: 1 + 4 / snr, lambda snr: snr + 4, lambda snr: (snr + 4) / (snr + 1)),
    "p2": (lambda snr: 1 / (1 + snr), lambda snr: snr / (1 + snr), lambda snr: snr / (1 + snr) ** 2),
    "bound": (lambda snr: snr**0, lambda snr: snr, lambda snr: snr / (snr + 1)),  # times its rate
    "sigmoid": (lambda snr: 1 / (1 + snr), lambda snr: snr / (1 + snr), lambda snr: snr / (1 + snr) ** 2),
}


class Zero(nn.Module):
    def forward(self, x, c_noise):
        return 0 * x


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("place", "predicts"), [(0, "noise"), (1, "x0"), (2, "v")])
def test_weights_on_what_the_network_predicts(weight, place, predicts):
    t = torch.tensor([0.01, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    denoiser, draws = Denoiser(Zero(), Cosine(), predicts), Draws(t, torch.full((5, 3), 1.5).double(), t > 2)
    x0 = torch.full((5, 3), 0.25, dtype=torch.float64)
    level = Level(Cosine(), t)
    a, b = denoiser.prediction.target(level)
    expected = FACTORS[weight][place](level.log_snr.exp()) * (a * 0.25 + b * 1.5) ** 2
    if weight == "bound":  # half of what log_snr falls by in a unit of the range
        rate = (Cosine().log_snr(t - 1e-6) - Cosine().log_snr(t + 1e-6)) / 2e-6
        loss = Objective(weight)(denoiser, x0, draws=draws)
        assert_close(loss / rate, expected * (1 - denoiser.t_min) / 2, rtol=1e-4, atol=0)
        return
    assert_close(Objective(weight)(denoiser, x0, draws=draws), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("predicts", ["v", "x0", "edm"])
def test_losses_are_finite_without_any_signal(weight, predicts):
    for schedule in (Sigmoid(), Flow()):
        denoiser, t = Denoiser(Zero(), schedule, predicts), torch.ones(4, dtype=torch.float64)
        loss = Objective(weight)(denoiser, torch.ones(4, 2), draws=Draws(t, torch.ones(4, 2), t > 2))
        assert loss.isfinite().all()
        if weight in ("snr", "min-snr", "sigmoid", "p2", "bound"):
            assert (loss == 0).all()


def test_edm_weighs_its_own_error_by_one_and_sigmoid_has_a_bias():
    level = Level(EDM(), torch.tensor([0.001, 0.01, 0.3]).double())
    edm = named("edm")
    assert_close(WEIGHTS["edm"]()(level, edm) * edm.c_out(level) ** 2, torch.ones(3).double())
    sigma = level.sigma
    assert_close(WEIGHTS["edm"]()(level, edm), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    biased = WEIGHTS["sigmoid"](bias=1.5)(level, edm)
    assert_close(biased * level.log_snr.neg().exp(), torch.sigmoid(1.5 - level.log_snr))
    with pytest.raises(InputError, match="gamma"):
        MinSNR(gamma=0)


class Converted(nn.Module):
    """A noise network, its output turned into another prediction by hand."""

    def __init__(self, network, prediction, schedule):
        super().__init__()
        self.network, self.prediction, self.schedule = network, prediction, schedule

    def forward(self, entrance, c_noise):
        level = Level(self.schedule, c_noise / 1000)
        x = entrance / self.prediction.c_in(level)[:, None]
        noise = self.network(torch.cat([x, c_noise[:, None] / 1000], 1))
        a, b = self.prediction.target(level)
        x0 = (x - level.sigma[:, None] * noise) / level.alpha[:, None]
        return a[:, None] * x0 + b[:, None] * noise


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_equivalent_objectives_have_equal_gradients(predicts, weight):
    """The same weight of the error of x_0 is one loss with one gradient, whatever is predicted.

    "simple" is another weight for each prediction: that of the noise is snr, that of the score sigma^2.
    """
    schedule = Cosine()
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    source = NoiseSource(range(32), (3,), dtype=torch.float64)
    x0, results = source.normal("probe"), []
    for name, used in (("noise", weight), (predicts, "snr" if weight == "simple" else weight)):
        prediction = named(name, label="time")
        denoiser = Denoiser(Converted(network, prediction, schedule), schedule, prediction)
        objective = Objective(used)
        loss = objective(denoiser, x0, draws=objective.draw(denoiser, source)).mean()
        results.append([loss, *torch.autograd.grad(loss, list(network.parameters()))])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_denoising_score_matching_with_weight_sigma_squared_is_the_simple_loss():
    """sigma^2 |score_hat - score|^2 = |noise_hat - noise|^2, by hand."""
    schedule = Cosine()
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    prediction = named("score", label="time")
    denoiser, source = (
        Denoiser(Converted(network, prediction, schedule), schedule, prediction),
        NoiseSource(range(32), (3,), dtype=torch.float64),
    )
    x0, objective = source.normal("probe"), Objective("snr")
    draws = objective.draw(denoiser, source)
    sigma = schedule.sigma(draws.t)[:, None]
    x_t = schedule.alpha(draws.t)[:, None] * x0 + sigma * draws.noise
    by_hand = (sigma**2 * (denoiser(x_t, draws.t).score + draws.noise / sigma) ** 2).mean(1)
    assert_close(objective(denoiser, x0, draws=draws), by_hand)
    ours, theirs = (
        torch.autograd.grad(loss.mean(), [*network.parameters()], retain_graph=True)
        for loss in (objective(denoiser, x0, draws=draws), by_hand)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


# -- times ------------------------------------------------------------------------------------------------------------

QUANTILES = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


@pytest.mark.parametrize("law", TIME_LAWS)
def test_times_stay_in_the_range_and_rise_with_the_draw(law):
    ends = torch.tensor([2.0**-33, 1 - 2.0**-33]).double()
    for u in (QUANTILES, ends, ends[:1], ends[1:]):
        times = TIME_LAWS[law]().times(u, Linear(), 0.01, 0.9)
        assert times.dtype == torch.float64 and times.shape == u.shape
        assert (times >= 0.01).all() and (times <= 0.9).all() and (times.diff() >= 0).all()


def test_each_time_law_has_its_distribution():
    normal = torch.special.ndtri(QUANTILES)

    def times(law, schedule):
        return TIME_LAWS[law]().times(QUANTILES, schedule, 1e-9, 1.0)

    assert_close(times("uniform", Cosine()), QUANTILES)
    assert_close(torch.log(80 * times("log-normal", EDM())), -1.2 + 1.2 * normal)
    assert_close(torch.logit(times("logit-normal", Flow())), normal)
    counts = (times("table", Linear()) * 1000).round().long().bincount(minlength=1001)
    assert counts[0] == 0 and (counts[1:] == 4).all()
    schedule = Cosine()
    ratio = torch.log(schedule.sigma(LogNormalTime(0.5, 0.1).times(QUANTILES, schedule, 1e-9, 1.0)))
    ratio = ratio - torch.log(schedule.alpha(LogNormalTime(0.5, 0.1).times(QUANTILES, schedule, 1e-9, 1.0)))
    assert_close(ratio, 0.5 + 0.1 * normal)
    assert_close(torch.logit(LogitNormalTime(1.0, 0.5).times(QUANTILES, schedule, 1e-9, 1.0)), 1 + 0.5 * normal)
    with pytest.raises(InputError, match="table"):
        times("table", Cosine())


def test_stratified_times_put_one_sample_in_each_stratum():
    u = NoiseSource(range(100), (), dtype=torch.float64).uniform("time")
    times = TIME_LAWS["stratified"]().times(u, Cosine(), 0.2, 1.0)
    assert torch.equal(((times - 0.2) / 0.8 * 100).floor(), torch.arange(100).double())


@pytest.mark.parametrize("law", TIME_LAWS)
def test_drawn_times_follow_their_law(law):
    denoiser, count = Denoiser(Zero(), Linear()), 4000
    drawn = Objective(times=law).draw(denoiser, NoiseSource(range(count), (1,))).t.sort().values
    expected = TIME_LAWS[law]().times(QUANTILES, Linear(), denoiser.t_min, 1.0)
    rank = torch.searchsorted(expected, drawn, right=True) / count
    assert float((rank - torch.arange(1, count + 1) / count).abs().max()) < 2 / math.sqrt(count)


# -- draws ------------------------------------------------------------------------------------------------------------


def test_offset_noise_is_one_draw_per_sample_and_channel():
    denoiser, source = Denoiser(Zero(), Cosine()), NoiseSource(range(500), (3, 4, 4), dtype=torch.float64)
    plain, offset = (Objective(offset=strength).draw(denoiser, source).noise for strength in (0.0, 0.1))
    extra = (offset - plain) / 0.1
    assert_close(extra, extra[:, :, :1, :1].expand_as(extra))
    per_channel = extra[:, :, 0, 0]
    assert len(per_channel.flatten().unique()) == 1500
    assert abs(float(per_channel.mean())) < 5 / math.sqrt(1500)
    assert abs(float(per_channel.var()) - 1) < 5 * math.sqrt(2 / 1500)
    assert abs(float(torch.corrcoef(torch.stack([per_channel.flatten(), plain.mean((2, 3)).flatten()]))[0, 1])) < 0.13
    with pytest.raises(InputError, match="offset"):
        Objective(offset=-1)


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, c_noise, vector):
        return self.linear(x) * torch.cos(c_noise)[:, None] + vector


@pytest.fixture
def conditional():
    return Denoiser(Conditional(), Cosine(), conditioner=Conditioner({"label": Label(5, 3)}))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("law", TIME_LAWS)
def test_a_loss_per_sample_that_the_draws_determine(conditional, weight, law):
    conditional.schedule = Linear()
    objective, x0, label = Objective(weight, law), torch.randn(6, 3), {"label": torch.arange(6) % 5}
    if objective.weight.integrates and not objective.times.unbiased:
        with pytest.raises(InputError, match="uniform, stratified, table, importance"):
            objective(conditional, x0, label)
        return
    draws = objective.draw(conditional, NoiseSource(range(6), (3,)))
    loss = objective(conditional, x0, label, draws)
    assert loss.shape == (6,) and loss.isfinite().all() and (loss > 0).all()
    assert torch.equal(loss, objective(conditional, x0, label, draws))
    assert not torch.equal(objective(conditional, x0, label), objective(conditional, x0, label))
    half = Draws(draws.t[3:], draws.noise[3:], draws.drop[3:])
    assert_close(objective(conditional, x0[3:], {"label": label["label"][3:]}, half), loss[3:])


def test_a_dropped_condition_is_the_null_condition(conditional):
    x0, label = torch.randn(6, 3), {"label": torch.arange(6) % 5}
    draws = Objective().draw(conditional, NoiseSource(range(6), (3,)))
    mask = torch.tensor([True, False] * 3)
    loss, given, null = (
        Objective()(conditional, x0, condition, draws._replace(drop=drop))
        for condition, drop in ((label, mask), (label, mask & False), ({}, mask & False))
    )
    assert_close(loss, torch.where(mask, null, given))
    assert not (null == given).any()


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 1.0])
def test_conditions_are_dropped_at_the_rate_asked_for(conditional, drop):
    count = 20000
    dropped = Objective(drop=drop).draw(conditional, NoiseSource(range(count), (1,))).drop
    assert dropped.dtype == torch.bool
    assert abs(float(dropped.double().mean()) - drop) <= 5 * math.sqrt(drop * (1 - drop) / count)
    with pytest.raises(InputError, match="dropping"):
        Objective(drop=1.5)


def test_names_are_checked():
    with pytest.raises(InputError, match="did you mean 'min-snr'"):
        Objective("min-sn")
    with pytest.raises(InputError, match="did you mean 'uniform'"):
        Objective(times="unifrm")
