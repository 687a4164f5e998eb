"""Whether operations are simply run."""

import torch
from torch.autograd import forward_ad


def ordinary() -> bool:
    """False while a compiler traces, or torch.func or forward-mode derivatives want formulas they can look into."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not (transformed or torch.compiler.is_compiling())
