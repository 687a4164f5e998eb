"""softmax(q k^T / sqrt(d)) v, the one operation that all attention comes to."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undiffuse import kernels
from undiffuse.networks.ordinary import ordinary

Queries = Float[Tensor, "batch heads length width"]
Keys = Float[Tensor, "batch heads others width"]


class _Attention(torch.autograd.Function):
    """torch's forward pass on the CPU, and our backward pass, which theirs is up to five times slower than."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, log_sum = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted: of the formula
            scores = q @ k.mT / q.shape[-1] ** 0.5
            return torch.autograd.grad(scores.softmax(-1) @ v, (q, k, v), gradient, create_graph=True)
        return kernels.attend_backward(gradient, q, k, v, out, log_sum)


def attend(q: Queries, k: Keys, v: Keys) -> Queries:
    """softmax(q k^T / sqrt(width)) v for each head."""
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if learns and ordinary() and kernels.attends(q, k, v):
        out: Tensor = _Attention.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v)
