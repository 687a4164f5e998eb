"""softmax(q k^T / sqrt(d)) v, the one operation that all attention comes to."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undiffuse import kernels
from undiffuse.networks.ordinary import ordinary

SCORES = 2**20  # that are worked on together in a backward pass by products: they stay in the second cache

Queries = Float[Tensor, "batch heads length width"]
Keys = Float[Tensor, "batch heads others width"]


def _by_products(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by matrix products and the softmax, some heads at a time."""
    (batch, heads, length, width), others = q.shape, k.shape[2]
    scale = width**-0.5
    # laid out so that every product is of what lies in order in memory
    rows, keys, slopes = (t.reshape(batch * heads, -1, width).contiguous() for t in (q * scale, k, gradient))
    rows_t, keys_t, slopes_t = (t.mT.contiguous() for t in (rows, keys, slopes))
    values_t = v.reshape(batch * heads, -1, width).mT.contiguous()
    of_q, of_k, of_v = torch.empty_like(rows), torch.empty_like(keys_t), torch.empty_like(values_t)
    together = max(1, SCORES // (length * others))
    for first in range(0, batch * heads, together):
        part = slice(first, first + together)
        weights = torch.bmm(rows[part], keys_t[part]).softmax(-1)
        torch.bmm(slopes_t[part], weights, out=of_v[part])
        changes = torch.bmm(slopes[part], values_t[part])
        changes = torch._softmax_backward_data(changes, weights, -1, q.dtype)
        torch.bmm(changes, keys[part], out=of_q[part])
        torch.bmm(rows_t[part], changes, out=of_k[part])
    of_q, of_k, of_v = of_q.mul_(scale), of_k.mT, of_v.mT
    return of_q.reshape(q.shape), of_k.reshape(k.shape), of_v.reshape(v.shape)


def _products_pay(q: Tensor, k: Tensor) -> bool:
    """Whether `_by_products` is faster than torch's backward pass: in bfloat16, of not too many tokens."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and 0 < q.shape[2] * k.shape[2] <= SCORES


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
        if kernels.attends(q, k, v):
            return kernels.attend_backward(gradient, q, k, v, out, log_sum)
        return _by_products(gradient, q, k, v)


def attend(q: Queries, k: Keys, v: Keys) -> Queries:
    """softmax(q k^T / sqrt(width)) v for each head."""
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if learns and ordinary() and q.dtype == k.dtype == v.dtype and (kernels.attends(q, k, v) or _products_pay(q, k)):
        out: Tensor = _Attention.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v)
