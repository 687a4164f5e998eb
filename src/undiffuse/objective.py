"""Training objectives: time law x weight x distance, one loss per sample.

    loss = weight(t) |x0_hat(x_t, t) - x_0|^2,        x_t = alpha x_0 + sigma noise

A weight is defined once, on the error of x_0, whatever the network predicts. An error of the prediction F is an error
of x_0 times c_out, so the loss is computed as weight c_out^2 |F_hat - F|^2 with one float64 factor per sample, which
stays finite where the error of x_0 alone would not.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from undiffuse.denoiser import Denoiser, Drop, Estimate, Sample
from undiffuse.errors import InputError, unknown
from undiffuse.noise import NoiseSource
from undiffuse.prediction import Level, Prediction
from undiffuse.registry import build
from undiffuse.schedule import Schedule, along_batch

PerSample = Float64[Tensor, " batch"]

# -- weights, on the error of x_0 -------------------------------------------------------------------------------------


class Weight(ABC):
    """A weight of |x_0 error|^2 as a function of the noise level."""

    @abstractmethod
    def __call__(self, level: Level, prediction: Prediction) -> PerSample: ...


@dataclass(frozen=True)
class Simple(Weight):
    """Weight 1 on the error of what the network predicts: the simple loss of every prediction (Ho et al. 2020)."""

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        return prediction.c_out(level).square().reciprocal()


@dataclass(frozen=True)
class Uniform(Weight):
    """Weight 1 on the error of x_0."""

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        return torch.ones_like(level.log_snr)


@dataclass(frozen=True)
class SNR(Weight):
    """Weight snr: the simple loss of noise prediction, for any prediction."""

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        return level.log_snr.exp()


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(snr, gamma) (Hang et al. 2023): min(1, gamma / snr) on the noise, min(snr, gamma) / (snr + 1) on v."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"gamma of min-SNR must be positive, not {self.gamma}")

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        return level.log_snr.exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM(Weight):
    """(sigma^2 + sd^2) / (sigma sd)^2 with sigma of the unscaled variable x_t / alpha (Karras et al. 2022, table 1).

    data_std: sd; by default that of the EDM prediction, or 0.5 for another.
    """

    data_std: float | None = None

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        # the preconditioning's own, so that the two cancel to weight 1 on what the network predicts
        data_std = getattr(prediction, "data_std", 0.5) if self.data_std is None else self.data_std
        return 1 / data_std**2 + level.log_snr.exp()


@dataclass(frozen=True)
class Sigmoid(Weight):
    """sigmoid(bias - log_snr) on the error of the noise (Hoogeboom et al. 2024)."""

    bias: float = 0.0

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        # snr sigmoid(b - l) = e^b sigmoid(l - b), without inf * 0 at either end
        return math.exp(self.bias) * (level.log_snr - self.bias).sigmoid()


WEIGHTS: dict[str, type[Weight]] = {
    "simple": Simple,
    "uniform": Uniform,
    "snr": SNR,
    "min-snr": MinSNR,
    "edm": EDM,
    "sigmoid": Sigmoid,
}

# -- time laws --------------------------------------------------------------------------------------------------------


class TimeLaw(ABC):
    """How training times are distributed: a map from uniform draws to times."""

    @abstractmethod
    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        """Times in [t_min, t_max] from uniform draws u in (0, 1), one per sample of the global batch."""


@dataclass(frozen=True)
class UniformTime(TimeLaw):
    """Uniform on [t_min, t_max]."""

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        return t_min + u * (t_max - t_min)


@dataclass(frozen=True)
class StratifiedTime(TimeLaw):
    """Uniform, one time in each of B equal strata by position in the batch: less variance (VDM, 2021)."""

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        position = torch.arange(len(u), dtype=torch.float64)
        return t_min + (position + u) / len(u) * (t_max - t_min)


@dataclass(frozen=True)
class LogNormalTime(TimeLaw):
    """log(sigma / alpha) normal, clamped to the range (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(u))).clamp(t_min, t_max)


@dataclass(frozen=True)
class LogitNormalTime(TimeLaw):
    """t = sigmoid of a normal, clamped to the range (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        return (self.mean + self.std * torch.special.ndtri(u)).sigmoid().clamp(t_min, t_max)


@dataclass(frozen=True)
class TableTime(TimeLaw):
    """Uniform over the steps of a table, for networks that are told an integer."""

    def times(self, u: PerSample, schedule: Schedule, t_min: float, t_max: float) -> PerSample:
        if schedule.length is None:
            raise InputError(f"the time law 'table' needs a schedule that is a table, not {schedule!r:.80}")
        return ((u * schedule.length).ceil() / schedule.length).clamp(t_min, t_max)


TIME_LAWS: dict[str, type[TimeLaw]] = {
    "uniform": UniformTime,
    "stratified": StratifiedTime,
    "log-normal": LogNormalTime,
    "logit-normal": LogitNormalTime,
    "table": TableTime,
}

# -- the objective ----------------------------------------------------------------------------------------------------


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


class Objective(Loss):
    """The weighted squared error of what the network predicts, averaged over a sample's elements.

    weight, times: names in `WEIGHTS`, `TIME_LAWS`, or instances; drop: the probability with which a sample's conditions
    are dropped together (classifier-free guidance needs it above 0); drop_each: besides, the probability with which a
    condition is dropped on its own, by name; offset: the strength of offset noise, one more draw per sample and
    channel.
    """

    def __init__(
        self,
        weight: str | Weight = "simple",
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
        if offset < 0:
            raise InputError(f"the strength of offset noise must be 0 or more, not {offset}")
        self.weight = build("weight", WEIGHTS, weight, {}) if isinstance(weight, str) else weight
        self.times = build("time law", TIME_LAWS, times, {}) if isinstance(times, str) else times
        self.drop, self.drop_each, self.offset = drop, dict(drop_each), offset

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

    def forward(
        self,
        denoiser: Denoiser,
        x0: Sample,
        condition: Mapping[str, object] | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of each sample of x0 (B, ...), shape (B,). Without `draws`, torch's global generator is the seed."""
        if draws is None:
            seeds = torch.randint(0, 2**62, (len(x0),))
            draws = self.draw(denoiser, NoiseSource(seeds, x0.shape[1:], x0.device, x0.dtype))
        level = Level(denoiser.schedule, draws.t)
        x_t = along_batch(level.alpha, x0) * x0 + along_batch(level.sigma, x0) * draws.noise
        estimate = cast(Estimate, denoiser(x_t, draws.t, denoiser.encode(condition or {}, draws.drop)))
        a, b = estimate.target(level)
        target = along_batch(a, x0) * x0 + along_batch(b, x0) * draws.noise  # the same noise as in x_t
        factor = self.weight(level, denoiser.prediction) * denoiser.prediction.c_out(level).square()
        error = (estimate.output - target).square().flatten(1).mean(1)
        return along_batch(factor, error) * error
