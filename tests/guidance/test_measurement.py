"""Linear measurements: what they measure, their adjoints, and least squares against dense linear algebra."""

import math

import pytest
import torch
from torch.testing import assert_close

from measuring import MEASUREMENTS, SHAPE, matrix
from undiffuse import InputError
from undiffuse.guidance import Blurred, Downsampled, Masked, Misfit
from undiffuse.guidance.least_squares import adjoint, least_squares

X = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MEASUREMENTS)
def measure(request):
    return MEASUREMENTS[request.param]


def test_the_adjoint_is_the_transposed_matrix(measure):
    seen = measure(X)
    y = torch.randn(seen.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        returned = adjoint(measure, X)(y)
    assert_close(returned.flatten(1), y.flatten(1) @ matrix(measure))
    assert_close((seen * y).sum(), (X * returned).sum())


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_least_squares_is_that_of_the_matrix(measure, ridge):
    """Also where y is nothing that a sample could give (a value in a hole), and each sample with a ridge of its own."""
    y = torch.randn(measure(X).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ridges = ridge * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    a = matrix(measure)
    if ridge:
        inverse = torch.linalg.inv(a.T @ a + ridges[:, None, None] * torch.eye(a.shape[1], dtype=torch.float64)) @ a.T
    else:
        inverse = torch.linalg.pinv(a).expand(3, -1, -1)
    expected = torch.einsum("bxy,by->bx", inverse, y.flatten(1))
    with torch.no_grad():
        assert_close(least_squares(measure, y, X, ridges, 60).flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_masks_and_averages_take_one_iteration():
    for name in ("masked", "masked per channel", "downsampled"):
        measure = MEASUREMENTS[name]
        y, ridge = measure(X), torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64)
        once, often = (least_squares(measure, y, X, ridge, iterations) for iterations in (1, 30))
        assert_close(once, often, rtol=1e-12, atol=1e-12)


def test_a_sample_that_has_converged_stands_still():
    """In float32, long after there is nothing left to gain, beside one that is 0 from the start."""
    measure, x = MEASUREMENTS["lopsided blur"], X.float()
    y = measure(x) * torch.tensor([1.0, 0.0, 1e-3])[:, None, None, None]
    found = least_squares(measure, y, x, torch.zeros(3, dtype=torch.float64), 500)
    assert found.dtype == torch.float32
    assert_close(measure(found), y, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], torch.zeros(SHAPE))


def test_a_gaussian_blur_keeps_brightness_and_spreads_a_point_by_its_standard_deviation():
    blur, point = Blurred.gaussian(1.5), torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    spread = blur(point)[0, 0].double()
    along = torch.arange(31) - 15.0
    assert_close(spread.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(spread.sum(0) @ along.double().square(), torch.tensor(1.5**2, dtype=torch.float64), rtol=0.04, atol=0)
    assert_close(blur(torch.full((2, 3, 9, 9), 0.7)), torch.full((2, 3, 9, 9), 0.7))


def test_a_kernel_is_not_flipped():
    kernel = torch.zeros(3, 3)
    kernel[0, 2] = 1  # one up, one to the right
    assert torch.equal(Blurred(kernel)(X)[..., 1:, :-1], X[..., :-1, 1:])


def test_measurements_per_sample_go_with_their_samples():
    masks = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    y = Masked(masks)(X) + 1
    chosen = torch.tensor([2, 0])
    assert torch.equal(Masked(masks).rows(chosen)(X[chosen]), masks[chosen] * X[chosen])
    whole = Misfit(Masked(masks), y)
    assert torch.equal(whole.rows(chosen)(X[chosen]), whole(X)[chosen])
    assert_close(whole(X), torch.full((3,), math.sqrt(32), dtype=torch.float64))
    assert torch.equal(
        Misfit(Masked(masks[0]), y[:1]).rows(chosen)(X[chosen]), Misfit(Masked(masks[0]), y[:1])(X)[chosen]
    )


def test_what_cannot_be_measured_is_refused():
    for mask in (torch.ones(4, 4), torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), float("nan"))):
        with pytest.raises(InputError, match="a mask is 0 or 1"):
            Masked(mask)
    for kernel in (torch.ones(3), torch.ones(3, 4), torch.full((3, 3), float("nan"))):
        with pytest.raises(InputError, match=r"both odd, not of shape"):
            Blurred(kernel)
    with pytest.raises(InputError, match=r"more than 6 x 6 pixels, not of \(4, 4\)"):
        Blurred.gaussian(2.0)(X)
    for std in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="above 0 pixels"):
            Blurred.gaussian(std)
    with pytest.raises(InputError, match="1 or more, not 0"):
        Downsampled(0)
    with pytest.raises(InputError, match="blocks of 3 x 3"):
        Downsampled(3)(X)
    with pytest.raises(
        InputError, match=r"y is \(3, 2, 2, 2\), but what is measured of these samples is \(3, 2, 4, 4\)"
    ):
        Misfit(MEASUREMENTS["masked"], Downsampled(2)(X))(X)
    with pytest.raises(InputError, match="must be differentiable"):
        adjoint(lambda x0: x0.detach(), X)
