"""softmax(q k^T / sqrt(d)) v, the one operation that all attention comes to."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undiffuse import kernels
from undiffuse.networks.ordinary import differentiated, ordinary

SCORES = 2**20  # that are worked on together in a backward pass by products: they stay in the second cache

Queries = Float[Tensor, "batch heads length width"]
Keys = Float[Tensor, "batch heads others width"]


def _by_products(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by matrix products, some heads at a time; the scores are made again in float32."""
    (batch, heads, length, width), others = q.shape, k.shape[2]
    scale = width**-0.5
    # laid out so that every product is of what lies in order in memory
    rows, keys, slopes = (t.reshape(batch * heads, -1, width).contiguous() for t in (q * scale, k, gradient))
    rows_t, keys_t, slopes_t = (t.mT.contiguous() for t in (rows, keys, slopes))
    values_t = v.reshape(batch * heads, -1, width).mT.contiguous()
    wide_rows, wide_keys_t = (q.float() * scale).reshape(batch * heads, length, width), keys_t.float()
    sums = log_sum.reshape(batch * heads, length, 1)
    of_q, of_k, of_v = torch.empty_like(rows), torch.empty_like(keys_t), torch.empty_like(values_t)
    together = max(1, SCORES // (length * others))
    for first in range(0, batch * heads, together):
        part = slice(first, first + together)
        weights = torch.bmm(wide_rows[part], wide_keys_t[part]).sub_(sums[part]).exp_().to(q.dtype)
        torch.bmm(slopes_t[part], weights, out=of_v[part])
        changes = torch.bmm(slopes[part], values_t[part])
        changes = torch._softmax_backward_data(changes, weights, -1, q.dtype)
        torch.bmm(changes, keys[part], out=of_q[part])
        torch.bmm(rows_t[part], changes, out=of_k[part])
    of_q, of_k, of_v = of_q.mul_(scale), of_k.mT, of_v.mT
    return of_q.reshape(q.shape), of_k.reshape(k.shape), of_v.reshape(v.shape)


def _by_formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return out


class _Attention(torch.autograd.Function):
    """torch's forward pass on the CPU, and our backward pass, which theirs is up to five times slower than."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum = ctx.saved_tensors
        if torch.is_grad_enabled() or not ordinary(gradient):  # a derivative of the derivative, say: of the formula
            return differentiated(_by_formula, (q, k, v), gradient)
        with torch.autocast("cpu", enabled=False):
            if kernels.attends(q):
                return kernels.attend_backward(gradient, q, k, v, out, log_sum)
            return _by_products(gradient, q, k, v, log_sum)


def _ours_pays(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these are heads that `_Attention` takes, and is faster for: on the CPU, some narrow, others in bfloat16.

    Under autocast only those that are cast already: it does not know the operator that is called.
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)) and ordinary(q, k, v)):
        return False
    alike = q.dtype == k.dtype == v.dtype and q.shape[:2] == k.shape[:2] and k.shape == v.shape
    alike = alike and q.shape[-1] == k.shape[-1] and all(t.stride(-1) == 1 and t.numel() > 0 for t in (q, k, v))
    cast = not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") == q.dtype
    products_pay = q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] <= SCORES
    return alike and cast and q.device.type == "cpu" and (products_pay or kernels.attends(q))


def attend(q: Queries, k: Keys, v: Keys) -> Queries:
    """softmax(q k^T / sqrt(width)) v for each head."""
    if _ours_pays(q, k, v):
        out: Tensor = _Attention.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v)
