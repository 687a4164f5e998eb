"""torchmetrics and torch-fidelity, to compare with. They import torchvision, for things not used here."""

import importlib
import importlib.util
import sys
from types import ModuleType
from unittest import mock

import pytest


def torchmetrics() -> ModuleType:
    """The package; the test is skipped where it is not installed."""
    if "torchmetrics" not in sys.modules:
        _import_fidelity()
    return pytest.importorskip("torchmetrics")


def torch_fidelity() -> ModuleType:
    """The package; the test is skipped where it is not installed."""
    _import_fidelity()
    return pytest.importorskip("torch_fidelity")


def _import_fidelity() -> None:
    """Imported with an empty torchvision, where there is none."""
    if "torch_fidelity" in sys.modules:
        return
    if importlib.util.find_spec("torch_fidelity") is None or importlib.util.find_spec("torchvision") is not None:
        return
    names = ["torchvision", *(f"torchvision.{part}" for part in ("datasets", "transforms", "transforms.functional"))]
    sys.modules |= {name: mock.MagicMock() for name in names}
    importlib.import_module("torch_fidelity")
    for name in names:  # torchmetrics asks whether it is installed, and must hear that it is not
        del sys.modules[name]
