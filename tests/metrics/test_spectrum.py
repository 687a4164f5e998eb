"""Radial power: waves stand where they belong, the powers add up to the variance, noise is flat."""

import math

import pytest
import torch

from undiffuse import InputError
from undiffuse.metrics.spectrum import radial_power


def wave(cycles, height, width, across=True):
    """Pictures of one wave of 100 grey levels up and down."""
    places = torch.arange(width if across else height) / (width if across else height)
    line = 127 + 100 * torch.sin(2 * math.pi * cycles * places)
    picture = line[None, :] if across else line[:, None]
    return picture.expand(height, width).round().byte()[None, None]


@pytest.mark.parametrize("cycles", [1, 3, 7])
@pytest.mark.parametrize("across", [True, False])
def test_a_wave_stands_at_its_frequency(cycles, across):
    radii, power = radial_power(wave(cycles, 16, 16, across))
    assert radii.tolist() == list(range(1, 9))
    assert int(power.argmax()) == cycles - 1
    assert float(power.sum() - power.max()) < 1e-3 * float(power.max())


def test_frequencies_count_cycles_of_the_shorter_side():
    """Four cycles over the longer of 16 x 32 pixels are two over as many pixels as the shorter has."""
    assert int(radial_power(wave(4, 16, 32))[1].argmax()) == 1


def test_powers_times_their_number_come_to_the_variance():
    """Of pictures whose frequencies all lie within the rings: waves along the axes."""
    pictures = torch.cat([wave(2, 16, 16), wave(5, 16, 16, False)])
    _, power = radial_power(pictures)
    frequencies = torch.fft.fftfreq(16) * 16
    ring = torch.hypot(frequencies[:, None], frequencies[None]).round()
    counts = torch.stack([(ring == r).sum() for r in range(1, 9)])
    variance = (pictures.double() / 255).flatten(1).var(1, correction=0).mean()
    assert float((power * counts).sum()) == pytest.approx(float(variance), rel=1e-3)


def test_the_power_of_noise_is_flat_and_blur_takes_the_high_part():
    noise = torch.randint(0, 256, (400, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    flat = radial_power(noise)[1]
    assert float(flat.max() / flat.min()) < 1.1
    blurred = torch.nn.functional.avg_pool2d(noise.float(), 3, stride=1, padding=1).byte()
    share = radial_power(blurred)[1] / flat
    assert float(share[0]) > 0.6 and float(share[-1]) < 0.1


def test_what_is_no_picture_is_refused():
    with pytest.raises(InputError, match=r"uint8 pictures .* not torch.float32"):
        radial_power(torch.rand(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"2 pixels a side"):
        radial_power(torch.zeros(2, 1, 1, 8, dtype=torch.uint8))
