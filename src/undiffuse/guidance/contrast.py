"""What contrasts conditions: several estimates of one denoiser, mixed with weights that add up to 1."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import CONTRAST, Guidance
from undiffuse.guidance.estimates import mixed
from undiffuse.schedule import Time, host

Weights = Float64[Tensor, "_ estimates"]  # for each sample, or one row for all; a row adds up to 1


class Contrast(Guidance):
    """guided = base + sum_k w_k (conditional_k - base), from one evaluation of K + 1 times the batch.

    scales: w (B, K), or (1, K) for all samples; plain: the weights, likewise, of the estimates without guidance;
    sequential: one evaluation after the other, of the batch each, where memory is short.

    What has no weight for any sample is not evaluated: with one scale of 1 that leaves the conditional alone.
    A subclass gives `encode`, by `stacked`.

    Raises: InputError around another guidance, whose conditions are a contrast already.
    """

    stage = CONTRAST
    held: ClassVar[tuple[str, ...]] = ("weights", "plain_weights")

    def __init__(
        self,
        denoiser: BaseDenoiser,
        scales: Float64[Tensor, "rows conditions"],
        plain: Float64[Tensor, "plain_rows conditions"],
        sequential: bool = False,
    ) -> None:
        super().__init__(denoiser)
        self.weights, self.plain_weights = _with_base(scales), _with_base(plain)
        self.sequential = sequential

    def check_inside(self, denoiser: BaseDenoiser) -> None:
        super().check_inside(denoiser)
        if isinstance(denoiser, Guidance):
            outer, inner = type(self).__name__, type(denoiser).__name__
            raise InputError(
                f"{outer} cannot go around {inner}, which contrasts estimates itself: mix conditions in one Composed, "
                "contrast models by Autoguidance(ClassifierFree(...), ...)"
            )

    @abstractmethod
    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """Per input (B, 1 + K, ...): the base, then the conditions."""

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        plain, guided = self._mixtures(x_t, t, condition, [self.plain_weights, self.weights])
        return plain, guided

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return self._mixtures(x_t, t, condition, [self.plain_weights])[0]

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return self._mixtures(x_t, t, condition, [self.weights])[0]

    def _mixtures(self, x_t: Sample, t: Time, condition: Encoded | None, weights: Sequence[Weights]) -> list[Estimate]:
        """The mixtures of the estimates by several tables of weights, each estimate evaluated once if at all."""
        self.check_batch(len(x_t))
        used = torch.cat(list(weights)).any(0).nonzero().flatten()
        condition = self.encode({}) if condition is None else condition
        estimates = self._estimates(x_t, host(t).expand(len(x_t)), condition, used.tolist())
        return [mixed(estimates, table[:, used]) for table in weights]

    def _estimates(
        self, x_t: Sample, times: Float64[Tensor, " batch"], condition: Encoded, used: Sequence[int]
    ) -> list[Estimate]:
        """The estimates under the conditions that are used, in their order."""
        for name, value in condition.items():
            if len(value) not in (1, len(x_t)):
                raise InputError(
                    f"the conditions ({name}) are of {len(value)} samples and the batch is of {len(x_t)}: what is said "
                    "apart, a negative or a part, is for all samples or for those of one batch"
                )
        if self.sequential or len(used) == 1:
            one_each = ({name: value[:, i] for name, value in condition.items()} for i in used)
            return [self.denoiser(x_t, times, one) for one in one_each]
        batch, count = len(x_t), len(used)
        joined = {name: torch.cat([value[:, i].expand(batch, *value.shape[2:]) for i in used])
                  for name, value in condition.items()}  # fmt: skip
        whole: Estimate = self.denoiser(torch.cat([x_t] * count), torch.cat([times] * count), joined)
        level, fraction = self.level(times, batch), whole.variance_fraction
        fractions = [None] * count if fraction is None else fraction.chunk(count)
        return [
            Estimate(whole.x_t[:batch], output, level, whole.target, its_fraction)
            for output, its_fraction in zip(whole.output.chunk(count), fractions, strict=True)
        ]


def _with_base(scales: Float64[Tensor, "rows conditions"]) -> Weights:
    """The scales, after what is left of 1 for the base."""
    base = 1 - scales.sum(1, keepdim=True)
    return torch.cat([torch.where(base.abs() < 1e-12, 0, base), scales], 1)  # in binary 0.6 + 0.3 + 0.1 is not quite 1


def stacked(encoded: Sequence[Encoded]) -> dict[str, Tensor]:
    """Encoded conditions beside one another, (B, how many, ...); what stands for all, or is one pixel, is expanded.

    Raises: InputError for conditions of different sizes.
    """
    beside = {}
    for name in encoded[0]:
        try:
            beside[name] = torch.stack(torch.broadcast_tensors(*(each[name] for each in encoded)), 1)
        except RuntimeError as error:
            sizes = " and ".join(str(tuple(each[name].shape)) for each in encoded)
            raise InputError(f"conditions that are contrasted must be of one size, not {sizes} ({name})") from error
    return beside
