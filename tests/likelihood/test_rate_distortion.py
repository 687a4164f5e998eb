"""Rate and distortion of Gaussian data, where both are known."""

import math

import torch

from undiffuse.exact import Gaussian
from undiffuse.likelihood import Bound, discrete_bound, rate_distortion, variational_bound
from undiffuse.noise import NoiseSource
from undiffuse.schedule import Cosine

STD, DIM = 0.6, 100


def data():
    denoiser = Gaussian(Cosine(), torch.zeros(DIM).double(), torch.full((DIM,), STD**2).double())
    return denoiser, STD * NoiseSource(range(200), (DIM,), dtype=torch.float64).normal("probe")


def test_the_rate_is_what_x_t_says_of_x_0_and_the_distortion_what_it_leaves_open():
    """1/2 log2(1 + snr std^2) bits, and std^2 / (1 + snr std^2)."""
    curve = rate_distortion(variational_bound(*data(), range(200), draws=64, levels=None))
    gain = 1 + curve.log_snr.exp() * STD**2
    assert bool((curve.log_snr.diff() > 0).all()) and bool((curve.rate.diff() > 0).all())
    assert float((curve.rate - 0.5 * gain.log2()).abs().max()) < 0.03
    assert float((curve.distortion / (127.5 * STD / gain.sqrt()) - 1).abs().max()) < 0.05
    assert float((curve.distortion - 127.5 * STD / gain.sqrt()).abs().sub(5 * curve.distortion_error).max()) < 0.3
    assert float(curve.rate_error.max()) < 0.03


def test_of_a_chain_of_steps_it_is_the_same_curve():
    curve = rate_distortion(discrete_bound(*data(), range(200), steps=500, draws=50, levels=None))
    gain = 1 + curve.log_snr.exp() * STD**2
    high = curve.log_snr < math.log(100)  # below, even times are too far apart in log_snr
    assert float((curve.rate - 0.5 * gain.log2())[high].abs().max()) < 0.12


def test_the_error_of_the_distortion_is_its_spread_over_repeats():
    """400 levels of one law are 400 repeats, of 50 samples each."""
    squared = torch.rand(50, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nothing = torch.zeros(50, dtype=torch.float64)
    curve = rate_distortion(Bound(nothing, nothing, squared, squared, squared))
    assert 0.9 < float(curve.distortion_error.mean() / curve.distortion.std()) < 1.1
