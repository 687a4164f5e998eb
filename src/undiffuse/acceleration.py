"""The fast settings of a device: they change how long a run takes, and its numbers within rounding.

What was chosen is written into the run folder, in the section `resolved` of its recipe.
"""

import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from undiffuse import kernels
from undiffuse.adapters import Compiled, check_compiler
from undiffuse.denoiser import Denoiser


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> str:
    """The name of a device, as results are filed under."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def bf16_pays(device: torch.device) -> bool:
    """Whether this device multiplies bf16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # the CPU's answers are private in torch; without them float32 is always right
    features = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return device.type == "cpu" and any(feature() for feature in features if feature)


def chosen(precision: str, compile: bool | None, device: torch.device) -> dict[str, Any]:
    """What a recipe's `training.precision` and `training.compile` come to on a device.

    precision: "auto" is bfloat16 where the device multiplies it faster. compile: None is true on CUDA; on CPUs the
    kernels do more (docs/performance.md), and they are used where they can be compiled.

    Raises: InputError where torch.compile is asked for and there is no compiler.
    """
    if precision == "auto":
        precision = "bfloat16" if bf16_pays(device) else "float32"
    compiled = device.type == "cuda" if compile is None else compile
    if compiled:
        check_compiler(device)
    return {
        "device": describe(device),
        "precision": precision,
        "compile": compiled,
        "kernels": device.type == "cpu" and not compiled and kernels.available(),
    }


def facts(denoiser: Denoiser, device: torch.device) -> dict[str, Any]:
    """How samples of a denoiser are computed, to be written beside them: device, precision, compiled, kernels."""
    network = denoiser.network
    compiled = isinstance(network, Compiled)
    parameter = next(network.parameters(), None)
    precision = denoiser.precision or (torch.float32 if parameter is None else parameter.dtype)
    return {
        "device": describe(device),
        "precision": str(precision).removeprefix("torch."),
        "compile": compiled,
        "kernels": device.type == "cpu" and not compiled and kernels.available(),
    }


def accelerate(network: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Prepare a network for training under what was `chosen`; copies of it (the average) stay as they were."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # the shapes of training do not change
    if settings["compile"]:
        network.compile()
