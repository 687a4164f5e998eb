"""Classifier guidance: Bayes on closed forms, the same in every parameterization, and nothing where nothing is told."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label
from undiffuse.exact import Gaussian, Mixture
from undiffuse.guidance import Classifier, ClassifierFree, NoisyClassifier
from undiffuse.guidance.estimates import tilted
from undiffuse.networks import Encoder
from undiffuse.prediction import PREDICTIONS, named
from undiffuse.samplers import DPMSolverPlusPlus, grid, sample
from undiffuse.schedule import EDM, Cosine, Flow, LogSNRShift

CENTRES = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.5]], dtype=torch.float64)
SPREADS = torch.stack([0.3 * torch.eye(2), 0.1 * torch.eye(2), torch.tensor([[0.2, 0.1], [0.1, 0.4]])]).double()
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
ASKED = torch.tensor([0, 2, 1, 2])


class Bayes:
    """log p(y | x_t) of a mixture whose components are the classes."""

    classes = ("cat", "dog", "eel")

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, 0
        self.experts = [Gaussian(schedule, *parts) for parts in zip(CENTRES, SPREADS, strict=True)]

    def log_prob(self, x, t):
        self.calls += 1
        joint = torch.stack([expert.log_prob(x, t) for expert in self.experts], 1) + WEIGHTS.log().to(x)
        return joint.log_softmax(1)


def mixture(schedule):
    return Mixture(schedule, WEIGHTS, CENTRES, SPREADS)


class Predicts(nn.Module):
    """What the mixture expects, said as a prediction of any kind that is told 1000 t."""

    def __init__(self, schedule, predicts):
        super().__init__()
        self.schedule, self.target, self.exact = schedule, named(predicts).target, mixture(schedule)

    def forward(self, x, c_noise):
        return self.exact(x, c_noise / 1000).combination(self.target)


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), EDM()], ids=repr)
def test_at_scale_one_an_exact_classifier_makes_the_model_conditional(schedule):
    law = Bayes(schedule)
    t = T if not isinstance(schedule, EDM) else T / 4
    guided = Classifier(mixture(schedule), law, 1.0).given(label=ASKED)
    with torch.no_grad():
        for name in ("x0", "noise", "v", "score"):
            expected = torch.stack([getattr(expert(X, t), name) for expert in law.experts])[ASKED, torch.arange(4)]
            assert_close(getattr(guided(X, t), name), expected, rtol=1e-10, atol=1e-10)


def test_a_scale_multiplies_the_gradient_and_may_differ_per_sample():
    schedule, scales = Cosine(), torch.tensor([0.0, 1.0, 2.5, -3.0], dtype=torch.float64)
    law, plain = Bayes(schedule), mixture(schedule)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, T)[torch.arange(4), ASKED].sum(), x)
    guided = Classifier(plain, law, scales)
    with torch.no_grad():
        without, with_it = guided.both(X, T, guided.encode({"label": ASKED}))
        assert torch.equal(without.output, plain(X, T).output)
        assert_close(with_it.score, plain(X, T).score + scales[:, None] * gradient, rtol=1e-10, atol=1e-10)
        assert torch.equal(with_it.output[0], without.output[0])
        some = torch.tensor([3, 1])
        rows = guided.given(label=ASKED).rows(some)(X[some], T[some])
        assert_close(rows.x0, with_it.x0[some], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("predicts", [name for name in PREDICTIONS if name != "edm"])
def test_what_the_network_predicts_does_not_matter(predicts):
    schedule = Cosine()
    network = Denoiser(Predicts(schedule, predicts), schedule, predicts)
    with torch.no_grad():
        expected = Classifier(mixture(schedule), Bayes(schedule), 2.0).given(label=ASKED)(X, T)
        estimate = Classifier(network, Bayes(schedule), 2.0).given(label=ASKED)(X, T)
    assert estimate.target == network.prediction.target
    for name in ("x0", "noise", "v", "score", "flow"):
        assert_close(getattr(estimate, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


def test_a_tilt_keeps_x_t_and_moves_x0_by_the_gradient():
    schedule = Flow()
    estimate = mixture(schedule)(X, T)
    for predicts in PREDICTIONS:
        target = named(predicts).target
        said = type(estimate)(X, estimate.combination(target), estimate.level, target)
        moved = tilted(said, torch.ones_like(X), torch.tensor(2.0, dtype=torch.float64))
        alpha, sigma = estimate.level.alpha[:, None], estimate.level.sigma[:, None]
        assert_close(moved.x0 - estimate.x0, (2 * sigma**2 / alpha).expand(4, 2))
        assert_close(alpha * moved.x0 + sigma * moved.noise, X)


def test_scale_zero_is_the_denoiser_bit_for_bit_and_asks_no_classifier():
    schedule = Cosine()
    law, plain = Bayes(schedule), mixture(schedule)
    for scale in (0.0, torch.zeros(4)):
        estimate = Classifier(plain, law, scale).given(label=1)(X, T)
        assert torch.equal(estimate.output, plain(X, T).output)
    assert law.calls == 0


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), LogSNRShift(Flow(), -1.5)], ids=repr)
@pytest.mark.parametrize("predicts", ["v", "x0"])
def test_both_ends_are_finite_in_float32_and_pure_noise_tells_nothing(schedule, predicts):
    torch.manual_seed(0)
    encoder = Encoder(2, 3, width=8, multipliers=(1,), dimensions=1)
    nn.init.normal_(encoder.head.weight)
    law = NoisyClassifier(encoder, schedule, Bayes.classes).requires_grad_(False).eval()
    network = Denoiser(nn.Conv1d(2, 2, 1), schedule, predicts)
    network.network.forward = lambda x, c_noise: x
    x = torch.randn(3, 2, 4)
    times = torch.tensor([network.t_min, 1 - 1e-6, 1.0])
    with torch.no_grad():
        plain, guided = network(x, times), Classifier(network, law, 5.0).given(label=[0, 1, 2])(x, times)
    assert bool(guided.output.isfinite().all() and guided.x0.isfinite().all())
    if float(schedule.alpha(1.0)) == 0:
        assert torch.equal(guided.output[2], plain.output[2])
    # the kick on x_0 stays of the size of the data where alpha vanishes, because the classifier's gradient does too
    assert (guided.x0 - plain.x0)[1].abs().max() < 50


def conditional(schedule):
    class Toy(nn.Module):
        def forward(self, x, c_noise, vector):
            return torch.tanh(x) + vector[:, :2] * (1 + x)

    torch.manual_seed(0)
    return Denoiser(Toy(), schedule, "v", conditioner=Conditioner({"label": Label(Bayes.classes, 3)}))


def test_it_steers_conditional_and_classifier_free_guided_models_too():
    schedule = Cosine()
    law, plain = Bayes(schedule), conditional(schedule)
    for inner in (plain, ClassifierFree(plain, 3.0)):
        guided = Classifier(inner, law, 2.0)
        assert guided.conditions == ("label",)
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(law.log_prob(x, T)[torch.arange(4), ASKED].sum(), x)
        with torch.no_grad():
            expected = inner.given(label=ASKED)(X, T).score + 2 * gradient
            assert_close(guided.given(label=ASKED)(X, T).score, expected, rtol=1e-6, atol=1e-6)
            assert_close(guided.given(label=["cat", "eel", "dog", "eel"])(X, T).score, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="ClassifierFree"):
        ClassifierFree(Classifier(plain, law, 2.0), 3.0)


def test_two_classifiers_add_up_and_a_dropped_class_steers_nothing():
    schedule = Cosine()
    law, plain = Bayes(schedule), mixture(schedule)
    drop = torch.tensor([False, True, False, True])
    with torch.no_grad():
        once, twice = Classifier(plain, law, 3.0), Classifier(Classifier(plain, law, 1.0), law, 2.0)
        expected = once.given(label=ASKED)(X, T).x0
        assert_close(twice.given(label=ASKED)(X, T).x0, expected, rtol=1e-10, atol=1e-10)
        dropped = once(X, T, once.encode({"label": ASKED}, drop)).x0
        assert_close(dropped, torch.where(drop[:, None], plain(X, T).x0, expected))


def test_gradients_go_through_it_where_they_are_asked_for():
    guided = Classifier(mixture(Cosine()), Bayes(Cosine()), 2.0).given(label=1)
    x = X[:1].clone().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: guided(x, 0.5).score[0], x)[:, 0]
    h = 1e-5
    with torch.no_grad():
        moved = [
            (guided(X[:1] + h * e, 0.5).score - guided(X[:1] - h * e, 0.5).score)[0] / (2 * h) for e in torch.eye(2)
        ]
    assert_close(jacobian, torch.stack(moved, 1).to(jacobian), rtol=1e-6, atol=1e-7)


def test_guided_samples_are_those_of_the_class():
    schedule = Cosine()
    guided = Classifier(mixture(schedule), Bayes(schedule), 1.0).given(label="eel")
    expert = Bayes(schedule).experts[2]
    times = grid.named("log-snr", schedule, 8, guided.t_min, 1.0)
    x = expert.prior(range(6), (2,), torch.float64)
    with torch.no_grad():
        ours, theirs = sample(guided, DPMSolverPlusPlus(), x, times), sample(expert, DPMSolverPlusPlus(), x, times)
    assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [Cosine(), EDM()], ids=repr)
def test_the_gradient_of_a_noisy_classifier_vanishes_as_the_true_one_does(schedule):
    """As alpha / sigma^2, by which guidance's sigma^2 / alpha is finite."""
    torch.manual_seed(0)
    encoder = Encoder(2, 3, width=8, multipliers=(1,), dimensions=1).double()
    nn.init.normal_(encoder.head.weight)
    encoder.embed.requires_grad_(False)[2].weight.zero_()  # so that levels differ by the factors alone
    law = NoisyClassifier(encoder, LogSNRShift(schedule, 0), Bayes.classes, data_std=0.5).double()
    kicks = []
    for t in schedule.time(torch.tensor([-7.0, -8.0], dtype=torch.float64)):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        x = (sigma * torch.ones(1, 2, 4, dtype=torch.float64)).requires_grad_()
        (gradient,) = torch.autograd.grad(law.log_prob(x, t)[0, 1], x)
        kicks.append(sigma**2 / alpha * gradient)
    assert float(kicks[0].abs().max()) > 1e-4
    assert_close(kicks[0], kicks[1], rtol=0.05, atol=1e-4)


def test_what_is_wrong_is_said():
    schedule = Cosine()
    law, plain = Bayes(schedule), mixture(schedule)
    guided = Classifier(plain, law, 1.0)
    with pytest.raises(InputError, match="label 3 is out of range: the classifier knows 0 to 2"):
        guided.given(label=3)
    with pytest.raises(InputError, match="did you mean 'dog'"):
        guided.given(label=["cat", "dgo"])
    with pytest.raises(InputError, match="integers or names"):
        guided.given(label=0.5)
    with pytest.raises(InputError, match="needs a class to guide to"):
        guided(X, T)
    with pytest.raises(InputError, match="unconditional, but was given size"):
        guided.given(label=1, size=3)
    with pytest.raises(InputError, match="finite, not nan"):
        Classifier(plain, law, float("nan"))
    with pytest.raises(InputError, match="for the classifier: both must be on one schedule"):
        Classifier(plain, Bayes(Flow()), 1.0)
