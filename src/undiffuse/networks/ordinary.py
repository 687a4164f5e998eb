"""Whether operations are simply run."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAIN = (Tensor, nn.Parameter)


def ordinary(*tensors: Tensor) -> bool:
    """Whether operations on these are just run, so that a kernel may stand for a formula.

    Not so while something traces or counts them, under torch.func and forward-mode derivatives, and for tensors of
    another kind: they want formulas that they can look into.
    """
    traced = torch.compiler.is_compiling() or torch._C._is_tracing() or _get_current_dispatch_mode() is not None
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not (traced or transformed) and all(type(t) in PLAIN and not is_legacy_batchedtensor(t) for t in tensors)


def differentiated(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a formula's inputs, None for those that need none; differentiable where that is asked for."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, because one tensor may come in several places and each place has a gradient of its own
        own = [tensor.view_as(tensor) for tensor in inputs]
        y = formula(*own)
    found = iter(torch.autograd.grad(y, [t for t in own if t.requires_grad], gradient, create_graph=again))
    return tuple(next(found) if tensor.requires_grad else None for tensor in own)
