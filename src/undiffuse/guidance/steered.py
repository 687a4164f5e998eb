"""Guidance by any differentiable function of the clean sample (Bansal et al. 2023; Chung et al. 2023)."""

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import Guidance, Scale, check_gradients, scale_of
from undiffuse.guidance.estimates import detached, tilted
from undiffuse.schedule import Time

Distance = Callable[[Tensor], Tensor]  # of x_0 (B, ...), differentiable: (B,), each of its own sample


class Steered(Guidance):
    """eps~ = eps + sigma scale grad_x_t distance(x0_hat(x_t)): sampling under log p(y | x_t) ~ -scale distance(x0_hat).

    The gradient goes through the network, so an evaluation costs about three, and the network's activations are kept
    meanwhile. Where alpha = 0, x_t says nothing of x_0 and the estimate stays as it is.

    distance: of x_0 (B, ...), one number for each sample (B,); with a method `rows(index)` where it holds something per
    sample. scale: a number, or one per sample (B,); where it is 0 for all no gradient is taken.

    With `Misfit`, |A x_0 - y|, this is the score of diffusion posterior sampling (Chung et al. 2023, eq. 16) with a
    constant scale, where their algorithm 1 takes steps of a constant size in x.

    Raises: InputError for a scale that is not finite, and when called with a distance of another shape or without a
    gradient.
    """

    held = ("scale", "distance")

    def __init__(self, denoiser: BaseDenoiser, distance: Distance, scale: Scale) -> None:
        super().__init__(denoiser)
        self.check_differentiable()
        self.distance, self.scale = distance, scale_of(scale, "distance's")

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        self.check_batch(len(x_t))
        if not bool(self.scale.any()):
            plain = self.plain(x_t, t, condition)
            return plain, plain
        check_gradients()
        followed = torch.is_grad_enabled() and x_t.requires_grad  # by a guidance outside this one
        with torch.enable_grad():
            x = x_t if followed else x_t.detach().requires_grad_()
            estimate = self.plain(x, t, condition)
            distances = self.distance(estimate.x0)
            if distances.shape != (len(x),) or not distances.requires_grad:
                raise InputError(
                    f"a distance gives one number with a gradient for each of {len(x)} samples, not "
                    f"{tuple(distances.shape)}{'' if distances.requires_grad else ' without a gradient'}"
                )
            (gradient,) = torch.autograd.grad(distances.sum(), x, create_graph=followed)
        plain = estimate if followed else detached(estimate)
        return plain, tilted(plain, -gradient, self.scale)
