import importlib.util
import sys
import types

import pytest
import torch


@pytest.fixture
def pictures():
    """Makes noise pictures, uint8 (n, channels, height, width)."""

    def make(n=3, channels=3, height=40, width=32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)

    return make


@pytest.fixture
def torch_fidelity(monkeypatch):
    """torch-fidelity, whose import asks for torchvision: an empty one stands in where it is not installed."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    if importlib.util.find_spec("torchvision") is None:
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for name in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(sys.modules["torchvision.datasets"], name, object)
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    import torch_fidelity

    return torch_fidelity
