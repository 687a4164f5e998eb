import math

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.errors import InputError
from undiffuse.metrics.features.resize import legacy, middle_square, resize

SIZES = [((32, 32), 299), ((200, 130), 64), ((48, 64), 48), ((299, 299), 299), ((7, 5), 20)]


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_clean_is_what_pillow_does_on_float_channels(pictures, shape, size):
    images = pictures(2, 3, *shape)
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for image in images for channel in image]
    theirs = np.stack([np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)) for channel in channels])
    assert np.abs(resize(images, size, "clean").flatten(0, 1).numpy() - theirs).max() < 0.01


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_legacy_is_what_tensorflow_1_did(pictures, shape, size):
    """out[i] = (1 - f) x[l] + f x[min(l + 1, last)] with l + f = i in / out, written as a loop."""
    images = pictures(1, 1, *shape).double()
    rows = [[(i * side // size, i * side % size / size) for i in range(size)] for side in shape]
    across = torch.stack([(1 - f) * images[..., j] + f * images[..., min(j + 1, shape[1] - 1)] for j, f in rows[1]], -1)
    theirs = torch.stack(
        [(1 - f) * across[..., i, :] + f * across[..., min(i + 1, shape[0] - 1), :] for i, f in rows[0]], -2
    )
    assert torch.allclose(legacy(images.byte(), size).double(), theirs, atol=0.02)


def stripes(period, side=240):
    x = torch.arange(side, dtype=torch.float64)
    return (127.5 + 127 * torch.cos(2 * math.pi * x / period)).round().byte().expand(1, 1, side, side)


def test_stripes_finer_than_the_new_pixels_vanish_and_coarse_ones_stay():
    """At a sixth of the size a wave of 3.2 pixels is above the Nyquist frequency: it must not come back as another."""
    fine, coarse = stripes(3.2), stripes(60)
    assert float(resize(fine, 40, "clean").std()) < 2
    assert float(resize(fine, 40, "legacy").std()) > 60
    centres = (torch.arange(40) + 0.5) * 6 - 0.5
    wave = 127.5 + 127 * torch.cos(2 * math.pi * centres / 60)
    assert float((resize(coarse, 40, "clean")[0, 0, 20] - wave)[2:-2].abs().max()) < 3
    corners = 127.5 + 127 * torch.cos(2 * math.pi * 6 * torch.arange(40) / 60)
    assert float((resize(coarse, 40, "legacy")[0, 0, 20] - corners).abs().max()) < 1  # it looks at corners, not centres


@pytest.mark.parametrize("mode", ["clean", "legacy"])
def test_constants_and_pictures_of_the_right_size_stay(pictures, mode):
    assert torch.allclose(resize(torch.full((1, 3, 50, 41), 77).byte(), 29, mode), torch.tensor(77.0), atol=1e-3)
    images = pictures(2, 3, 29, 29)
    assert torch.equal(resize(images, 29, mode), images.float())


def test_clean_is_not_clipped_as_clean_fid_is_not():
    edge = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255
    grown = resize(edge, 64)
    assert grown.min() < -5 and grown.max() > 260


def test_the_middle_square():
    rows = torch.arange(10, dtype=torch.uint8)[:, None].expand(10, 4)[None, None]
    assert middle_square(rows)[0, 0, :, 0].tolist() == [3, 4, 5, 6]
    assert torch.equal(middle_square(rows.mT).mT, middle_square(rows))


def test_an_unknown_mode_is_refused(pictures):
    with pytest.raises(InputError, match="unknown resizing 'legasy': did you mean 'legacy'"):
        resize(pictures(), 8, "legasy")
