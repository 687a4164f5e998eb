"""Steps of each sample's own size: as accurate as asked, and a hard sample costs the easy ones nothing."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label
from undiffuse.denoiser import Wrapper
from undiffuse.exact import Mixture, solve
from undiffuse.guidance import ClassifierFree
from undiffuse.samplers import Adaptive, grid, sample, walk
from undiffuse.schedule import EDM, Cosine, Flow, Linear

PAIRS = ("bosh3", "dopri5")
FIRST, LAST = 0.9, 0.1
X = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mixture(schedule=None, spread=0.1):
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.2]], dtype=torch.float64)
    covariances = spread * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return Mixture(schedule or Cosine(), torch.ones(3), means, covariances)


class Counter(Wrapper):
    """Counts the evaluations of each sample."""

    def __init__(self, denoiser, samples):
        super().__init__(denoiser)
        self.index, self.counts = torch.arange(samples), torch.zeros(samples, dtype=torch.int64)

    def rows(self, index):
        chosen = super().rows(index)
        chosen.index = self.index[index]
        return chosen

    def forward(self, x_t, t, condition=None):
        assert len(x_t) == len(self.index)
        self.counts[self.index] += 1
        return self.denoiser(x_t, t)


def walked(denoiser, sampler, x, times):
    walking = walk(denoiser, sampler, x, times)
    while True:
        try:
            x = next(walking)
        except StopIteration as end:
            return x, end.value


@pytest.fixture(scope="module")
def truth():
    return {False: solve(mixture(), X, FIRST, LAST), True: solve(mixture(), X, LAST, FIRST)}


@pytest.mark.parametrize("rises", [False, True], ids=["falling", "rising"])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_error_falls_with_the_tolerance_and_evaluations_grow(truth, pair, rises):
    times = torch.tensor([LAST, FIRST] if rises else [FIRST, LAST], dtype=torch.float64)
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        end, state = walked(mixture(), Adaptive(tolerance, tolerance, pair), X, times)
        errors.append(float((end - truth[rises]).abs().max()))
        assert errors[-1] < 100 * tolerance
        evaluations.append(int(state.evaluations.sum()))
    assert errors[2] < 1e-2 * errors[0] and all(finer < 0.5 * coarser for coarser, finer in pairwise(errors)), errors
    assert all(more > fewer for fewer, more in pairwise(evaluations))


@pytest.mark.parametrize("pair", PAIRS)
def test_a_hard_sample_costs_the_easy_ones_nothing(pair):
    schedule, sampler = Cosine(), Adaptive(1e-4, 1e-4, pair)
    easy = torch.tensor([[-1.2, 0.6], [1.2, 0.1]], dtype=torch.float64)
    hard = torch.tensor([[0.0341, 0.2417]], dtype=torch.float64)  # between two modes
    times = torch.tensor([[0.5, 0.5, 1.0], [0.05, 0.05, 0.01]], dtype=torch.float64)
    denoiser = mixture(schedule, spread=0.002)
    beside, alone = Counter(denoiser, 3), Counter(denoiser, 2)
    together, state = walked(beside, sampler, torch.cat([easy, hard]), times)
    apart, other = walked(alone, sampler, easy, times[:, :2])
    assert_close(together[:2], apart, rtol=1e-12, atol=1e-12)
    assert torch.equal(state.evaluations, beside.counts) and torch.equal(other.evaluations, alone.counts)
    assert torch.equal(beside.counts[:2], alone.counts)
    assert beside.counts[2] > 1.5 * beside.counts[:2].max()


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_whole_runs_are_counted_and_land_on_the_data(schedule):
    counter = Counter(mixture(schedule), 6)
    times = grid.named("uniform", schedule, 2, counter.t_min, 0.99)
    x = X * float(torch.hypot(schedule.alpha(0.99), schedule.sigma(0.99)))
    samples, state = walked(counter, Adaptive(1e-4, 1e-4), x, times)
    assert torch.equal(state.evaluations, counter.counts) and (state.k == 2).all()
    tiny = float(schedule.time(20.0))
    end = counter.denoiser(solve(counter.denoiser, x, 0.99, tiny), tiny).x0
    assert_close(samples, end, rtol=5e-3, atol=5e-3)


class Toy(nn.Module):
    """A bounded field that bends with its condition."""

    def forward(self, x, c_noise, vector):
        return torch.sin(3 * x + vector) * (1 + vector[:, :1] * c_noise[:, None] / 1000)


def test_conditions_and_scales_per_sample_follow_their_rows():
    torch.manual_seed(0)
    plain = Denoiser(Toy(), Cosine(), "v", conditioner=Conditioner({"label": Label(3, 2)})).double()
    labels, scales = torch.tensor([0, 2, 1, 2, 0, 1]), torch.tensor([0.0, 1.0, 2.5, 4.0, 0.5, 1.0], dtype=torch.float64)
    sampler, times = Adaptive(1e-5, 1e-5), torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
    for together, alone in (
        (plain.given(label=labels), lambda i: plain.given(label=labels[i])),
        (plain.given(label=1), lambda i: plain.given(label=1)),
        (
            ClassifierFree(plain, scales).given(label=labels),
            lambda i: ClassifierFree(plain, float(scales[i])).given(label=labels[i]),
        ),
    ):
        samples, state = walked(together, sampler, X, times)
        assert len(set(state.evaluations.tolist())) > 1
        for i in range(len(X)):
            one, counted = walked(alone(i), sampler, X[i : i + 1], times)
            assert_close(samples[i], one[0], rtol=1e-9, atol=1e-9)
            assert counted.evaluations == state.evaluations[i]


@pytest.mark.parametrize("pair", PAIRS)
def test_runs_start_without_any_signal(pair):
    denoiser = mixture(Flow())
    times = torch.tensor([1.0, denoiser.t_min, 0.0], dtype=torch.float64)
    tight, loose = (sample(denoiser, Adaptive(rtol, rtol, pair), X, times) for rtol in (1e-5, 1e-4))
    assert_close(tight, loose, rtol=3e-3, atol=3e-3)
    tiny = float(Flow().time(24.0))
    assert_close(tight, denoiser(solve(denoiser, X, 1.0, tiny), tiny).x0, rtol=1e-3, atol=1e-3)
    up = sample(
        denoiser, Adaptive(1e-5, 1e-5, pair), sample(denoiser, Adaptive(1e-5, 1e-5), X, times[:2]), times[:2].flip(0)
    )
    assert_close(up, X, rtol=2e-3, atol=2e-3)


def test_too_many_steps_are_an_error_that_names_them(unchecked):
    times = torch.tensor([0.9, 0.1], dtype=torch.float64)
    with pytest.raises(InputError, match=r"most=3.*3 steps between two levels were not enough for 6 of 6 samples"):
        sample(mixture(), Adaptive(1e-6, 1e-6, most=3), X, times)
    for arguments in ({"rtol": 0.0, "atol": 0.0}, {"rtol": -1.0}, {"most": 0}):
        with pytest.raises(InputError, match="tolerances"):
            Adaptive(**arguments)
    with pytest.raises(InputError, match="did you mean 'dopri5'"):
        Adaptive(pair="dopri4")
