"""What every objective does: draw times and noise for a batch, and give one loss per sample."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from undiffuse.denoiser import Denoiser, Drop, Estimate, Sample
from undiffuse.errors import InputError, unknown
from undiffuse.noise import NoiseSource
from undiffuse.objective.times import TIME_LAWS, ImportanceTime, TimeLaw
from undiffuse.prediction import Level
from undiffuse.registry import build
from undiffuse.schedule import along_batch

PerSample = Float64[Tensor, " batch"]


class Draws(NamedTuple):
    """The randomness of one evaluation, per sample: times (B,) float64, noise (B, ...), and dropped conditions, (B,)
    for all of them or for each by its name.
    """

    t: PerSample
    noise: Sample
    drop: Drop


class Loss(nn.Module, ABC):
    """What a module is trained by: draws that belong to the samples, and a loss for each of them."""

    @abstractmethod
    def draw(self, module: Any, source: NoiseSource, /) -> Any:
        """The randomness of a batch, from its samples' own streams."""

    @abstractmethod
    def forward(self, module: Any, x0: Sample, condition: Mapping[str, Any], draws: Any, /) -> Float[Tensor, " batch"]:
        """The loss of each sample of x0 (B, ...)."""


class BaseObjective(Loss):
    """Draws, and the denoiser called on them; a subclass says what the estimate costs.

    times: a name in `TIME_LAWS`, or an instance; drop: the probability with which a sample's conditions are dropped
    together (classifier-free guidance needs it above 0); drop_each: besides, the probability with which a condition is
    dropped on its own, by name; offset: the strength of offset noise, one more draw per sample and channel.
    """

    integrates = False  # whether the mean loss is an integral over uniform time

    def __init__(
        self,
        times: str | TimeLaw = "uniform",
        *,
        drop: float = 0.1,
        drop_each: Mapping[str, float] = MappingProxyType({}),
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        for probability in (drop, *drop_each.values()):
            if not 0 <= probability <= 1:
                raise InputError(f"the probability of dropping a condition must be in [0, 1], not {probability}")
        if not offset >= 0:
            raise InputError(f"the strength of offset noise must be 0 or more, not {offset}")
        self.times: TimeLaw = build("time law", TIME_LAWS, times, {}) if isinstance(times, str) else times
        if not isinstance(self.times, TimeLaw):
            raise InputError(
                f"a time law is a name ({', '.join(TIME_LAWS)}) or an instance of TimeLaw, not {times!r:.60}"
            )
        self.drop, self.drop_each, self.offset = drop, dict(drop_each), offset

    def check(self, denoiser: Denoiser) -> None:
        """Find out before any work whether this denoiser can be trained so. Raises: InputError."""
        if self.integrates and not self.times.unbiased:
            known = ", ".join(name for name, law in TIME_LAWS.items() if law.unbiased)
            raise InputError(
                f"a variational bound is an integral over uniform time, so its time law must be one of {known}, "
                f"not {self.times!r:.80}"
            )
        if self.integrates and self.offset:
            raise InputError(f"a variational bound is of independent noise: offset must be 0, not {self.offset}")
        if isinstance(denoiser.schedule, nn.Module):
            self._check_learned_schedule(denoiser)

    def _check_learned_schedule(self, denoiser: Denoiser) -> None:
        schedule = denoiser.schedule
        if not self.integrates or denoiser.learns_variance:
            raise InputError(
                "a learned schedule minimises the variance of the variational bound: train it with weight=bound, and "
                "without a learned variance"
            )
        if isinstance(self.times, ImportanceTime):
            raise InputError("a learned schedule and time law importance do the same work: use stratified times")
        if denoiser.t_min != schedule.finest_time or denoiser.t_max != 1:
            raise InputError(
                f"a learned schedule has fixed ends, t = {schedule.finest_time} and 1, or it could make its task easy: "
                f"t_min={denoiser.t_min} and t_max={denoiser.t_max} must be those"
            )
        if denoiser.prediction.label != "log-snr":
            raise InputError(
                "under a learned schedule a time has no meaning that stays: tell the network its level by "
                f"prediction.label=log-snr, not {denoiser.prediction.label}"
            )

    def draw(self, denoiser: Denoiser, source: NoiseSource) -> Draws:
        """The draws of a batch from its samples' own streams."""
        # drawn on the host, where times live, so that nothing waits for the device
        u = NoiseSource(source.seeds, (), "cpu", torch.float64).uniform("time")
        t = self.times.times(u, denoiser.schedule, denoiser.t_min, denoiser.t_max)
        noise = source.normal("noise")
        if self.offset:
            per_channel = (source.shape[0], *[1] * (len(source.shape) - 1))
            noise = noise + self.offset * source.normal("channel", shape=per_channel)
        return Draws(t, noise, self._dropped(denoiser, source))

    def _dropped(self, denoiser: Denoiser, source: NoiseSource) -> Drop:
        together = source.uniform("drop") < self.drop
        if not self.drop_each:
            return together
        names = denoiser.droppable
        for name in self.drop_each:
            if name not in names:
                raise unknown("condition with a null", name, names)
        alone = {name: source.uniform("drop", 1 + names.index(name)) < p for name, p in self.drop_each.items()}
        return {name: together | alone[name] if name in alone else together for name in names}

    @abstractmethod
    def loss(self, denoiser: Denoiser, estimate: Estimate, x0: Sample, target: Sample) -> Float[Tensor, " batch"]:
        """What an estimate of x0 costs, per sample. target: the combination of x0 and noise that was predicted."""

    def forward(
        self,
        denoiser: Denoiser,
        x0: Sample,
        condition: Mapping[str, object] | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of each sample of x0 (B, ...), shape (B,). Without `draws`, torch's global generator is the seed."""
        self.check(denoiser)
        if draws is None:
            seeds = torch.randint(0, 2**62, (len(x0),))
            draws = self.draw(denoiser, NoiseSource(seeds, x0.shape[1:], x0.device, x0.dtype))
        level = denoiser.level(draws.t, len(x0))
        x_t = along_batch(level.alpha, x0) * x0 + along_batch(level.sigma, x0) * draws.noise
        estimate = cast(Estimate, denoiser(x_t, level, denoiser.encode(condition or {}, draws.drop)))
        a, b = estimate.target(level)
        target = along_batch(a, x0) * x0 + along_batch(b, x0) * draws.noise  # the same noise as in x_t
        loss = self.loss(denoiser, estimate, x0, target)
        # of the law that the times were drawn from, before it hears of this loss
        correction = self.times.correction(draws.t, denoiser.t_min, denoiser.t_max)
        if torch.is_grad_enabled():
            self.times.observe(draws.t, loss, denoiser.t_min, denoiser.t_max)
        if level.log_snr.requires_grad:
            _descend_variance(level, loss.detach())
        return loss if correction is None else along_batch(correction, loss) * loss


def _descend_variance(level: Level, loss: Float[Tensor, " batch"]) -> None:
    """Let a learned schedule descend the mean of loss^2, and the network the mean of the loss, in one backward pass.

    The mean loss does not depend on the schedule, so loss^2 is its variance up to a constant; the gradient of a
    sample's loss^2 is 2 loss times that of its loss, and all of it passes through the sample's level (Kingma et al.
    2021, section 5 and appendix I.2). The losses come to the host for it: the price of levels that live there.
    """
    factor = 2 * loss.cpu().double()
    for value in (level.log_snr, level.log_snr_dot):
        value.register_hook(lambda gradient: gradient * factor)
