"""The discrete variational bound, for a variance that is fixed or learned."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor, nn

from undiffuse.chain import Steps, bound_terms
from undiffuse.denoiser import Denoiser, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.objective.base import BaseObjective
from undiffuse.objective.times import TableTime, TimeLaw


def check_steps(denoiser: Denoiser, times: TimeLaw) -> None:
    """Raises: InputError where the steps of a table are not what is drawn from."""
    if denoiser.schedule.length and not isinstance(times, TableTime):
        raise InputError(
            f"the discrete bound on a table is over its own steps: take the time law table, not {times!r:.80}, or a "
            "schedule in continuous time"
        )


class VariationalBound(BaseObjective):
    """The discrete variational bound of `steps` steps, one of its terms per sample, in nats/dimension.

    With a network that learns its variance this is L_vlb of Nichol & Dhariwal (2021); of others the variance is
    beta-tilde (Ho et al. 2020, eq. 5). The term of the prior, which has nothing to learn, is left out. A table's steps
    are its own, drawn from with the time law "table". levels: as in `Objective`.
    """

    integrates = True

    def __init__(
        self,
        times: str | TimeLaw = "uniform",
        *,
        drop: float = 0.1,
        drop_each: Mapping[str, float] = MappingProxyType({}),
        steps: int = 1000,
        levels: int | None = 256,
    ) -> None:
        super().__init__(times, drop=drop, drop_each=drop_each)
        if steps < 2:
            raise InputError(f"the bound needs 2 steps or more, not {steps}")
        self.steps, self.levels = steps, levels

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if isinstance(denoiser.schedule, nn.Module):
            raise InputError("a learned schedule is trained with the bound of continuous time: objective weight=bound")
        check_steps(denoiser, self.times)

    def loss(self, denoiser: Denoiser, estimate: Estimate, x0: Sample, target: Sample) -> Float[Tensor, " batch"]:
        steps = Steps.of(denoiser, estimate.level, self.steps)
        c_out = denoiser.prediction.c_out(estimate.level)
        return steps.number * bound_terms(steps, estimate, x0, target, c_out, self.levels)
