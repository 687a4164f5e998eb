import pytest
import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.errors import InputError
from undiffuse.metrics import measure_ssim, ssim

IMAGES = torch.randint(0, 256, (4, 3, 15, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_one_where_equal_and_symmetric():
    other = IMAGES.flip(0)
    assert torch.allclose(ssim(IMAGES, IMAGES), torch.ones(4).double())
    assert torch.allclose(ssim(IMAGES, other), ssim(other, IMAGES))
    assert ssim(IMAGES, other).max() < 0.2 and ssim(IMAGES, 255 - IMAGES).max() < 0


def test_two_greys_in_closed_form():
    a, b, c1 = 60.0, 100.0, (0.01 * 255) ** 2
    greys = [torch.full((1, 1, 12, 12), level, dtype=torch.uint8) for level in (60, 100)]
    assert float(ssim(*greys)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def of_window(x: Tensor, y: Tensor) -> float:
    """The formula of the paper."""
    place = torch.arange(11.0).double() - 5
    window = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    covariance, c1, c2 = (window * (x - mean_x) * (y - mean_y)).sum(), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(expected / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))


def test_every_window_by_the_formula():
    # 6 x 6 pixels mirrored at their edges: windows of 11 x 11 of the whole, one for each
    small = [functional.pad(image[None, :, 4:10, 4:10].double(), 4 * [5], mode="reflect") for image in IMAGES[:2, :1]]
    windows = [image.unfold(2, 11, 1).unfold(3, 11, 1).reshape(36, 11, 11) for image in small]
    found = ssim(IMAGES[:1, :1, 4:10, 4:10], IMAGES[1:2, :1, 4:10, 4:10])
    assert float(found) == pytest.approx(sum(of_window(x, y) for x, y in zip(*windows, strict=True)) / 36, rel=1e-9)


def test_the_mean_and_its_error():
    values = ssim(IMAGES, IMAGES.flip(0).roll(1, 3))
    found = measure_ssim(IMAGES, IMAGES.flip(0).roll(1, 3))
    assert (found.label, found.n, found.value) == ("SSIM", 4, pytest.approx(float(values.mean())))
    assert found.error == pytest.approx(float(values.std()) / 2)


def test_refusals():
    for images, other, message in (
        (IMAGES, IMAGES.float(), "uint8 images of one shape"),
        (IMAGES, IMAGES[:, :1], "uint8 images of one shape"),
        (IMAGES[..., :5], IMAGES[..., :5], "6 pixels a side"),
    ):
        with pytest.raises(InputError, match=message):
            ssim(images, other)
