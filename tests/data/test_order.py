import pytest
import torch

from undiffuse.data import Order
from undiffuse.errors import InputError


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_epoch_is_a_permutation(n):
    order = Order(n, seed=3)
    for epoch in range(4):
        assert sorted(order.indices(epoch * n, n).tolist()) == list(range(n))


def test_epochs_and_seeds_differ():
    rows = [tuple(Order(100, seed).indices(100 * epoch, 100).tolist()) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(set(rows)) == 9


def test_a_position_says_it_all():
    stream = Order(7, seed=5).indices(0, 50)
    used = Order(7, seed=5)
    for first, count in [(40, 3), (0, 1), (6, 2), (13, 30), (5, 0), (20, 7)]:
        expected = stream[first : first + count]
        assert torch.equal(used.indices(first, count), expected)
        assert torch.equal(Order(7, seed=5).indices(first, count), expected)
    assert used.indices(3, 0).dtype == torch.int64


def test_what_comes_back_is_the_callers_own():
    order = Order(5, seed=0)
    before = order.indices(0, 5).clone()
    order.indices(0, 5).zero_()
    assert torch.equal(order.indices(0, 5), before)


def test_far_positions_cost_no_walk():
    assert len(Order(10, seed=-1).indices(10**15 + 3, 20)) == 20


def test_the_stream_of_a_seed_is_the_same_in_every_version():
    assert Order(6, seed=0).indices(0, 12).tolist() == [2, 1, 3, 5, 4, 0, 4, 1, 0, 2, 3, 5]


def test_unfit_numbers_are_refused():
    with pytest.raises(InputError, match="order of 0 samples: 1 or more"):
        Order(0, seed=0)
    with pytest.raises(InputError, match="positions from -1"):
        Order(3, seed=0).indices(-1, 2)
    with pytest.raises(InputError, match="-2 of them"):
        Order(3, seed=0).indices(1, -2)
