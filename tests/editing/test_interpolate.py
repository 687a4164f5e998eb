"""Spherical interpolation: exact ends, a constant norm, the arc of a circle, and vectors that single out no arc."""

import math

import pytest
import torch

from undiffuse import InputError
from undiffuse.editing import spherical


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_exact(dtype):
    a, b = normal(3, 1, 4, 4, dtype=dtype), normal(3, 1, 4, 5, dtype=dtype)[..., :4]
    assert torch.equal(spherical(a, b, 0.0), a)
    assert torch.equal(spherical(a, b, 1.0), b)
    assert spherical(a, b, 0.3).dtype == dtype


def test_equal_norms_are_kept_and_each_sample_has_its_own_share_and_angle():
    a, b = (x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1) for x in (normal(5, 3, 4), normal(5, 4, 3).mT))
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = spherical(a, b, shares)
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(5).double(), atol=1e-12)
    one_by_one = torch.cat([spherical(a[i : i + 1], b[i : i + 1], float(shares[i])) for i in range(5)])
    assert torch.equal(found, one_by_one)


def test_it_is_the_arc_of_a_circle():
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    angle = 0.3 * math.pi / 2
    assert torch.allclose(spherical(a, b, 0.3), torch.tensor([[math.cos(angle), math.sin(angle)]]).double())


def test_parallel_opposite_and_zero_vectors_take_the_straight_line():
    a = normal(1, 6)
    for b in (a, 2 * a, a * (1 + 1e-9), -a, 0 * a):
        assert torch.allclose(spherical(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-8)
    assert bool(spherical(0 * a, 0 * a, 0.5).isfinite().all())


def test_the_straight_line_meets_the_arc():
    a, away = normal(1, 6), normal(1, 7)[:, :6]
    for size in (0.9e-4, 1.1e-4):
        b = a + size * away
        assert torch.allclose(spherical(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-7)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"one shape, not \[1, 2\] and \[1, 3\]"):
        spherical(normal(1, 2), normal(1, 3), 0.5)
    with pytest.raises(InputError, match=r"shares lie in \[0, 1\], not in \[1\.5, 1\.5\]"):
        spherical(normal(1, 2), normal(1, 2), 1.5)
