"""Least squares with a linear measurement, by conjugate gradients that never wait for the device."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.errors import InputError
from undiffuse.guidance.measurement import Linear
from undiffuse.schedule import along_batch


def adjoint(measure: Linear, like: Sample) -> Linear:
    """A^T, from measurements of samples like these back to such samples: the gradient of <A x, y>.

    A is linear, so it is the same at every x. Raises: InputError where no gradient comes through.
    """
    with torch.enable_grad():
        x = torch.zeros_like(like).requires_grad_()
        seen = measure(x)
    if not seen.requires_grad:
        raise InputError(f"the measurement {measure!r} must be differentiable, but its result has no gradient")

    def back(y: Tensor) -> Tensor:
        return torch.autograd.grad(seen, x, y.expand_as(seen), retain_graph=True)[0]

    return back


def dots(u: Sample, v: Sample) -> Float[Tensor, " batch"]:
    """<u, v> of each sample."""
    return (u * v).flatten(1).sum(1)


def per_sample(value: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """A number for each sample, on its device, ready to multiply `like` (B, ...)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def least_squares(
    measure: Linear, y: Sample, like: Sample, ridge: Float64[Tensor, " batch"], iterations: int
) -> Sample:
    """x (B, ...) of the shape of `like` with the least |A x - y|^2 + ridge |x|^2, which is A^T (A A^T + ridge)^-1 y.

    Where ridge is 0 it is the pseudo-inverse A^+ y, and what of y no x gives is left alone. By so many conjugate
    gradients: fewer than A has distinct singular values stop short of it, and hold back the smallest of them.
    ridge: on the host, 0 or above. Nothing waits for the device: a sample that has converged stands still.

    Source: CGLS (Hestenes & Stiefel 1952; Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1).
    """
    back, damping = adjoint(measure, like), along_batch(ridge, like)

    def squared(v: Tensor) -> Tensor:
        return per_sample(dots(v, v), like)

    x = torch.zeros_like(like)
    residual = y
    direction = slope = back(residual)
    first = now = squared(slope)
    least = first * torch.finfo(like.dtype).eps ** 2
    for _ in range(iterations):
        seen = measure(direction)
        curvature = squared(seen) + damping * squared(direction)
        step = torch.where((now > least) & (curvature > 0), now / curvature, 0.0)
        x = x + step * direction
        residual = residual - per_sample(step.flatten(), residual) * seen
        slope = back(residual) - damping * x
        before, now = now, squared(slope)
        direction = slope + torch.where(before > least, now / before, 0.0) * direction
    return x
