"""What would make a program wait for an accelerator, found without one: the meta device stands in for it.

Meta tensors have no values, so what asks for one (`float(x)`, `if x.any()`, `x[mask]`, `x.cpu()`) fails by itself.
What is left are the ways from the host to the device for which the host waits:
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAKE = (torch.tensor, torch.as_tensor, torch.asarray)
COPY = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Waits(AssertionError):
    """An operation for which the host waits for the device."""


class _Made(TorchFunctionMode):
    """torch.tensor(values, device=...) copies, and waits, where no dispatcher sees it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in MAKE and out.device.type == "meta" and not isinstance(args[0], torch.Tensor):
            raise Waits(f"{function.__name__}({args[0]!r:.60}) made on the device")
        return out


class _Moved(TorchDispatchMode):
    """Copies to the device that block, and indices of the host, which are copied so."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        from_host = any(x.device.type == "cpu" and x.ndim for x in tensors)
        if from_host and isinstance(out, torch.Tensor) and out.device.type == "meta":
            blocking = not (kwargs.get("non_blocking") or (operator is COPY[1] and args[2:] == (True,)))
            if operator not in COPY or blocking:
                raise Waits(f"{operator} of {[(x.device.type, tuple(x.shape)) for x in tensors]}")
        return out


@contextlib.contextmanager
def no_waiting():
    """Raises `Waits` for what would wait for the device, if "meta" were one."""
    with _Made(), _Moved():
        yield
