"""What the pages on energy and on rate and distortion are measured with (benchmarks/energy.py, rate_distortion.py)."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_of_a_gaussian_is_the_least_where_its_variances_are_equal_and_above_it_elsewhere() -> None:
    rates = script("rate_distortion")
    log_snr = torch.linspace(-6, 8, 29, dtype=torch.float64)
    equal = torch.full((5,), 0.3, dtype=torch.float64)
    rate, error = rates.gaussian_code(equal, log_snr)
    assert torch.allclose(rates.water_filling(equal, error), rate, atol=1e-9)
    assert torch.allclose(rate, (0.3 / error).log2() / 2)
    unequal = torch.tensor([1.0, 0.1, 0.01, 0.0], dtype=torch.float64)
    rate, error = rates.gaussian_code(unequal, log_snr)
    assert (rates.water_filling(unequal, error) < rate).all()
    # once all but the constant stand in the water, the least rate is that of their geometric mean
    low = torch.tensor([0.75 * 0.001], dtype=torch.float64)
    assert float(rates.water_filling(unequal, low)) == pytest.approx(math.log2(1e-3 / 0.001**3) / 8)


def test_the_barrier_is_that_of_the_data_where_there_is_no_noise() -> None:
    energy = script("energy")
    middle = 0.5 / 0.2**2 - math.log(2)  # both Gaussians in the middle, against one at the bottom
    assert energy.barrier(14.0) == pytest.approx(middle, rel=1e-3)
    assert energy.barrier(0.0) == 0


def test_products_are_the_jacobian_and_its_transpose() -> None:
    energy = script("energy")
    matrix, x, v = (
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    forward, backward = energy.products(lambda x: x.sin() @ matrix.T, x, v)
    assert torch.allclose(forward, (x.cos() * v) @ matrix.T) and torch.allclose(backward, x.cos() * (v @ matrix))
    mixture = energy.ring()
    forward, backward = energy.products(lambda x: mixture(x, 0.5).x0, x[:, :2], v[:, :2])
    assert torch.allclose(forward, backward)
