"""Randomness that belongs to a sample: Philox's known answers, moments, independence, and no trace of the batch."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from undiffuse.errors import InputError
from undiffuse.noise import PURPOSES, NoiseSource, philox

ONES = 0xFFFFFFFF
# kat_vectors of the authors' Random123
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, answer):
    words = philox(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(int(w) for w in words) == answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_draws_have_the_moments_of_a_normal(dtype):
    z = NoiseSource(range(64), (4096,), dtype=dtype).normal("step").double().flatten()
    count = len(z)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        error = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / count)
        assert abs(float((z**power).mean()) - moment) < 5 * error
    cdf = torch.special.ndtr(z.sort().values)
    assert float((cdf - torch.arange(count) / count).abs().max()) < 2 / math.sqrt(count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_draws_are_uniform_and_never_0_or_1(dtype):
    u = NoiseSource(range(64), (), dtype=dtype).uniform("time", shape=(4096,)).double().flatten()
    assert u.min() > 0 and u.max() < 1
    assert float((u.sort().values - torch.arange(len(u)) / len(u)).abs().max()) < 2 / math.sqrt(len(u))


def draw(seed=5, purpose="step", k=0):
    return NoiseSource([seed], (2**16,), dtype=torch.float64).normal(purpose, k).flatten()


def correlated(a, b):
    return max(abs(float(torch.corrcoef(torch.stack([f(a), f(b)]))[0, 1])) for f in (torch.abs, lambda v: v))


OTHERS = [
    *({"purpose": purpose} for purpose in PURPOSES if purpose != "step"),
    *({"k": k} for k in (1, 2, 1000)),
    *({"seed": seed} for seed in (0, 4, 6, 5 + 2**32, 5 + 2**40, 2**62 + 5)),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_streams_of_other_seeds_purposes_and_steps_are_independent(other):
    assert correlated(draw(), draw(**other)) < 5 / 2**8


def test_elements_of_a_draw_are_independent():
    z = draw()
    for lag in (1, 2, 3, 4):
        assert correlated(z[:-lag], z[lag:]) < 5 / 2**8


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_sample_has_the_same_noise_in_any_batch_and_order(size):
    seeds = torch.arange(16) * 2**31 + 3
    whole = NoiseSource(seeds, (3, 5, 2))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))[:size]
    part = NoiseSource(seeds[order], (3, 5, 2))
    for k in (0, 7):
        assert torch.equal(part.normal("step", k), whole.normal("step", k)[order])
        assert torch.equal(part.uniform("time", k), whole.uniform("time", k)[order])


def test_the_number_of_a_draw_may_differ_per_sample():
    source = NoiseSource([1, 2, 3], (4,))
    k = torch.tensor([5, 0, 9])
    each = [source.normal("step", int(n))[i] for i, n in enumerate(k)]
    assert torch.equal(source.normal("step", k), torch.stack(each))


def test_both_precisions_come_from_the_same_words():
    single, double = (NoiseSource(range(9), (4096,), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert_close(single.uniform("time").double(), double.uniform("time"), rtol=0, atol=2**-23)
    difference = (single.normal("noise").double() - double.normal("noise")).abs()
    assert difference.max() < 1e-3 and difference.mean() < 1e-6


def test_a_larger_shape_continues_a_smaller_one():
    source = NoiseSource([4], ())
    assert torch.equal(source.normal("step", shape=(64,))[:, :7], source.normal("step", shape=(7,)))


def test_bad_seeds_and_purposes_are_refused(unchecked):
    for seeds, message in (([3, -1], "-1"), ([[1, 2]], r"\(1, 2\)")):
        with pytest.raises(InputError, match=message):
            NoiseSource(torch.tensor(seeds), (2,))
    with pytest.raises(InputError, match="did you mean 'prior'"):
        NoiseSource([1], (2,)).normal("priro")


def test_float32_uniforms_stay_inside_the_open_interval(monkeypatch):
    source = NoiseSource([0], ())
    for word in (0, 0xFFFFFFFF):
        monkeypatch.setattr(source, "_words", lambda *_, word=word: torch.full((1, 4), word, dtype=torch.int64))
        assert 0 < float(source.uniform("time")) < 1


# -- branches ---------------------------------------------------------------------------------------------------------


def test_branches_are_streams_of_their_own():
    def drawn(*numbers, purpose="step"):
        source = NoiseSource([5], (2**14,), dtype=torch.float64)
        for number in numbers:
            source = source.branch(number)
        return source.normal(purpose).flatten()

    streams = [drawn(), drawn(1), drawn(2), drawn(4095), drawn(1, 1), drawn(1, 2), drawn(2, 1)]
    for i, stream in enumerate(streams):
        assert all(correlated(stream, other) < 5 / 2**7 for other in streams[:i])
    assert torch.equal(drawn(3), drawn(3))


def test_a_branch_leaves_its_source_alone_and_may_differ_per_sample():
    source = NoiseSource([1, 2], (4,))
    before = source.normal("step")
    branched = source.branch(torch.tensor([7, 9]))
    assert torch.equal(source.normal("step"), before)
    each = [source.branch(number).normal("step")[i] for i, number in enumerate((7, 9))]
    assert torch.equal(branched.normal("step"), torch.stack(each))


# -- Brownian paths ---------------------------------------------------------------------------------------------------

CLOCKS = [(-9.0, -2.0), (-2.0, 0.37), (0.37, 0.45), (0.45, 6.1), (6.1, 30.0)]


def clock(value, count=1):
    return torch.full((count,), value, dtype=torch.float64)


def path(count=1, shape=(2**14,), first=0):
    return NoiseSource(range(first, first + count), shape, dtype=torch.float64)


@pytest.mark.parametrize(("start", "end"), [*CLOCKS, (-math.inf, 3.0), (-20.0, 20.0), (4.0, -4.0), (5.0, math.inf)])
def test_brownian_increments_are_standard_normal(start, end):
    z = path(4).brownian(clock(start, 4), clock(end, 4)).flatten()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        error = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / len(z))
        assert abs(float((z**power).mean()) - moment) < 5 * error


def test_brownian_increments_over_disjoint_intervals_are_independent():
    source = path()
    increments = [source.brownian(clock(a), clock(b)).flatten() for a, b in [(-math.inf, -9.0), *CLOCKS]]
    for i, increment in enumerate(increments):
        assert all(correlated(increment, other) < 5 / 2**7 for other in increments[:i])


def whole(*points, source=None):
    """The increment over the first to the last of `points`, in units of the clock, from those between them."""
    source = source or path(3, (5,))
    passed = [math.exp(b) - math.exp(a) for a, b in itertools.pairwise(points)]
    parts = [source.brownian(clock(a, 3), clock(b, 3)) for a, b in itertools.pairwise(points)]
    return sum(math.sqrt(abs(p)) * part for p, part in zip(passed, parts, strict=True))


@pytest.mark.parametrize("first", [-math.inf, -3.0])
def test_brownian_increments_add_up_whatever_the_number_of_steps(first):
    coarse = whole(first, 2.5)
    for points in ([0.3], [-2.0, -1.0, 0.0, 1.0, 2.0], [0.05 * i for i in range(-10, 15)]):
        assert_close(whole(first, *points, 2.5), coarse, rtol=1e-9, atol=1e-9)


def test_a_falling_clock_runs_the_same_path_back():
    assert_close(whole(2.5, 1.0, -3.0), -whole(-3.0, 1.0, 2.5), rtol=1e-9, atol=1e-9)
    assert_close(whole(2.5, -3.0), whole(2.5, 2.0, 1.9, 0.4, -3.0), rtol=1e-9, atol=1e-9)


def test_a_brownian_path_belongs_to_its_sample():
    """Not to the batch, nor to what was asked before, nor to the others' clocks."""
    starts, ends = (torch.tensor(v, dtype=torch.float64) for v in ([-3.0, -1.0, 4.0], [2.0, 0.5, -4.0]))
    together = path(3, (5,))
    together.brownian(clock(-8.0, 3), clock(-7.0, 3))
    found = together.brownian(starts, ends)
    for i in range(3):
        alone = path(1, (5,), first=i).brownian(starts[i : i + 1], ends[i : i + 1])
        assert_close(found[i], alone[0], rtol=1e-12, atol=1e-12)
    branched = together.branch(1).brownian(starts, ends)
    assert not (branched == found).any()
    assert torch.equal(together.brownian(starts, ends), found)


def test_brownian_paths_are_the_same_in_both_precisions():
    single, double = (NoiseSource(range(3), (5,), dtype=d) for d in (torch.float32, torch.float64))
    for a, b in CLOCKS:
        both = [source.brownian(clock(a, 3), clock(b, 3)).double() for source in (single, double)]
        assert_close(*both, rtol=1e-3, atol=1e-3)
