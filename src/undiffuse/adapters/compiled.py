"""A network compiled for sampling, where few shapes are called many times."""

import os
import platform
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.errors import InputError

MOST_PADDING = 4  # times its own rows that a call may be filled up to, rather than compiled
MOST_PROGRAMS = 8  # after which torch stops compiling a function (torch._dynamo.config.recompile_limit)


def check_compiler(device: torch.device) -> None:
    """Raises: InputError where torch.compile has no C++ compiler for a CPU's code."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device.type == "cpu" and platform.system() != "Windows" and not any(map(shutil.which, names)):
        raise InputError(
            f"torch.compile needs a C++ compiler, and {' or '.join(names)} was not found: leave compile out"
        )


class Compiled(nn.Module):
    """network(x, c_noise, **condition) -> tensor, by torch.compile; on CUDA by CUDA graphs.

    Sampling calls a network with few shapes: a batch, twice the batch under guidance, and what is left of each in the
    last batch. Every shape has a program of its own, because programs of any size are slower and CUDA graphs have none.
    A compilation takes a minute and a call milliseconds, so a call of fewer rows is filled up to a size that is
    compiled, if that is no more than `MOST_PADDING` times as large: samples do not depend on their neighbours. Once
    there are `MOST_PROGRAMS`, calls are filled up to any larger size, and without one the network itself is called.

    mode: of torch.compile, by default "reduce-overhead" (CUDA graphs) for a network on CUDA. warmup_seconds: what the
    compilations have taken so far; programs: how many there are. What else is asked of it, the network answers.

    Where gradients are wanted (guidance by gradients) the network itself is called: its activations, which the backward
    pass needs, would stand in memory that the next replay of a graph writes over.

    Raises: InputError where there is no compiler.
    """

    def __init__(self, network: nn.Module, mode: str | None = None) -> None:
        super().__init__()
        parameter = next(network.parameters(), None)
        graphs = parameter is not None and parameter.device.type == "cuda"
        check_compiler(torch.device("cpu") if parameter is None else parameter.device)
        self.network = network
        self.mode = mode or ("reduce-overhead" if graphs else "default")
        self.warmup_seconds = 0.0
        self._program: Callable[..., Tensor] | None = None
        self._sizes: dict[Any, list[int]] = {}  # of the batches that have a program, by what else a shape consists of

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles compile for themselves: a program is bound to the weights it was made for."""
        return {**self.__dict__, "_program": None, "_sizes": {}, "warmup_seconds": 0.0}

    @property
    def programs(self) -> int:
        """How many shapes were compiled."""
        return sum(map(len, self._sizes.values()))

    def forward(
        self, x: Float[Tensor, "batch ..."], c_noise: Float[Tensor, " batch"], **condition: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """condition: (B, ...), each on x's device."""
        network: Callable[..., Tensor] = self.network
        given = {"x": x, "c_noise": c_noise, **condition}
        if torch.is_grad_enabled() or not len(x):
            return network(**given)
        rows, kind = len(x), x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        shape = (x.device, precision, *((name, value.dtype, value.shape[1:]) for name, value in given.items()))
        sizes = self._sizes.setdefault(shape, [])
        full = self.programs >= MOST_PROGRAMS
        size = min((size for size in sizes if rows <= size and (full or size <= MOST_PADDING * rows)), default=0)
        if full and not size:
            return network(**given)
        inputs = {name: _filled(value, size or rows) for name, value in given.items()}
        if not size:
            self._warm_up(inputs)
            sizes.append(rows)
        return self._run(inputs)[:rows].clone()  # the next call of a CUDA graph writes into the same memory

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        if self._program is None:
            self._program = torch.compile(self.network.forward, mode=self.mode, dynamic=False)
        if inputs["x"].device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # nothing of the call before is needed any more
        return self._program(**inputs)

    def _warm_up(self, inputs: dict[str, Tensor]) -> None:
        """The slow calls of a new shape: the first compiles, and on CUDA the second records the graph."""
        began = time.monotonic()
        cuda = inputs["x"].device.type == "cuda"
        for _ in range(2 if cuda else 1):
            self._run(inputs)
        if cuda:
            torch.cuda.synchronize(inputs["x"].device)
        self.warmup_seconds += time.monotonic() - began


def _filled(value: Tensor, rows: int) -> Tensor:
    """`value` with its last row repeated up to so many, in one layout: another would be compiled again."""
    missing = rows - len(value)
    if missing:
        value = torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
    return value.contiguous()
