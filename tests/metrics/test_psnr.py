import math

import pytest
import torch

from undiffuse import InputError
from undiffuse.metrics import mean_psnr, measure_psnr, psnr

IMAGES = torch.randint(0, 200, (5, 3, 6, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_constant_error_of_k_levels_is_20_log_255_over_k():
    for k in (1, 10, 50):
        assert torch.allclose(psnr(IMAGES + k, IMAGES), torch.tensor(20 * math.log10(255 / k), dtype=torch.float64))
    assert torch.equal(psnr(IMAGES + 10, IMAGES), psnr(IMAGES, IMAGES + 10))  # bytes are not subtracted as bytes


def test_it_is_of_each_image_alone_and_equal_ones_count_as_100_in_the_mean():
    other = IMAGES.clone()
    other[2] += 5
    values = psnr(other, IMAGES)
    assert values.isinf().tolist() == [True, True, False, True, True]
    found = mean_psnr(other, IMAGES)
    assert found["n"] == 5 and found["db"] == pytest.approx((400 + 20 * math.log10(51)) / 5, abs=1e-3)
    assert found["standard_error"] == pytest.approx(float(values.clamp(max=100).std()) / math.sqrt(5), abs=1e-3)
    measured = measure_psnr(other, IMAGES)
    assert (measured.label, measured.n, round(measured.value, 3)) == ("PSNR", 5, found["db"])
    assert measured.error == pytest.approx(found["standard_error"], abs=1e-3)


@pytest.mark.parametrize("other", [IMAGES.float(), IMAGES[:, :1], IMAGES[:2]])
def test_what_cannot_be_compared_is_refused(other):
    with pytest.raises(InputError, match="uint8 images of one shape"):
        psnr(other, IMAGES)
