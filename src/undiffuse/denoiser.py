"""A denoiser estimates the clean sample: network + schedule + prediction + the range of times it was trained on.

`denoiser(x_t, t, condition)` returns an `Estimate`, from which x_0, the noise, v, the score or the flow can be read,
whichever of them the network predicts.
"""

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from undiffuse import prediction as predictions
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource
from undiffuse.prediction import Combination, Level, Prediction
from undiffuse.schedule import Schedule, Time, along_batch, host

LEVELS_KEPT = 1024  # noise levels whose coefficients a denoiser keeps: grids of sampling, not the draws of training

Sample = Float[Tensor, "batch ..."]
Encoded = Mapping[str, Tensor]  # what a network takes beside x_t and c_noise: named tensors (B, ...)
Drop = Bool[Tensor, " batch"] | Mapping[str, Tensor]  # samples that get the null: of all conditions, or of each by name


class Encoder(Protocol):
    """Raw conditions -> what a network takes. See `undiffuse.conditioning.Conditioner`.

    Guidance asks for the null as the condition with every sample in `drop`.
    """

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Estimate:
    """What a denoiser knows of a batch: x_t and one combination F = a x_0 + b noise of the two unknowns.

    x_t, output: (B, ...); level: the B noise levels; target: the function that says (a, b) at a level.
    variance_fraction: where the network learns it, r (B, ...) between 0 and 1: the log-variance of a step lies so far
    from that of beta-tilde (0) to that of beta (1) (Nichol & Dhariwal 2021, eq. 15).
    """

    x_t: Sample
    output: Sample
    level: Level
    target: Combination
    variance_fraction: Sample | None = None

    @classmethod
    def of_x0(cls, x_t: Sample, x0: Sample, level: Level) -> "Estimate":
        """The estimate that says x_0 is `x0`."""
        return cls(x_t, x0, level, predictions.x0_of)

    def with_output(self, output: Sample) -> "Estimate":
        """The same estimate but for F, which is `output`."""
        return replace(self, output=output)

    def combination(self, wanted: Combination) -> Sample:
        """`a x_0 + b noise` for (a, b) = wanted(level), per sample."""
        level, target = self.level, self.target

        def of(part: int) -> Callable[[], Tensor]:
            return lambda: predictions.conversion(level, target(level), wanted(level))[part]

        of_x = level.factor((target, wanted, 0), of(0), self.x_t)
        of_output = level.factor((target, wanted, 1), of(1), self.x_t)
        output = _scaled(self.output, of_output)
        if isinstance(of_x, Tensor):
            return torch.addcmul(output, of_x, self.x_t)
        return output if of_x == 0.0 else self.x_t + output

    @property
    def x0(self) -> Sample:
        """The expected clean sample, E[x_0 | x_t]."""
        return self.combination(predictions.x0_of)

    @property
    def noise(self) -> Sample:
        """The expected noise."""
        return self.combination(predictions.noise_of)

    @property
    def v(self) -> Sample:
        """alpha noise - sigma x_0."""
        return self.combination(predictions.v_of)

    @property
    def score(self) -> Sample:
        """grad_x log p(x_t)."""
        return self.combination(predictions.score_of)

    @property
    def flow(self) -> Sample:
        """dx/dt along the probability-flow ODE."""
        return self.combination(predictions.flow_of)


def _scaled(x: Sample, factor: Tensor | float) -> Sample:
    """factor * x, without a pass over x where the factor is 1."""
    return x if isinstance(factor, float) and factor == 1.0 else factor * x


class BaseDenoiser(nn.Module, ABC):
    """What every denoiser is: a network's, a guided one, or one in closed form (`undiffuse.exact`).

    schedule: the noise schedule it knows; t_min, t_max: the times at which it may be called, 0 < t_min < t_max <= 1;
    data_std: the standard deviation of the data, for the prior.
    """

    schedule: Schedule
    t_min: float
    t_max: float
    data_std: float
    learns_variance: bool = False  # whether estimates carry a `variance_fraction`

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that `encode` takes."""
        return ()

    @property
    def droppable(self) -> tuple[str, ...]:
        """The names of the conditions that have a null."""
        return self.conditions

    @abstractmethod
    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        """The estimate at x_t (B, ...) and times t (a float or (B,)), under an encoded condition."""

    @abstractmethod
    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """Raw conditions (a label, a vector) as what `forward` takes. drop: samples that get the null."""

    def read(self, condition: Mapping[str, object]) -> dict[str, object]:
        """Raw conditions as tensors (1, ...) or (B, ...), where it can be told how many samples they are for."""
        return dict(condition)

    def given(self, **condition: object) -> "Given":
        """This denoiser under a condition, encoded once: `denoiser.given(label=7)`, `denoiser.given(label=labels)`."""
        return Given(self, self.encode(condition))

    def rows(self, index: Int64[Tensor, " chosen"]) -> "BaseDenoiser":
        """This denoiser for some samples of its batch: what it holds per sample is held for those alone."""
        return self

    def level(self, t: Time | Level, batch: int) -> Level:
        """The noise levels of a batch; a level is one already. Raises: InputError for times outside [t_min, t_max]."""
        if isinstance(t, Level):
            return t
        times = host(t).expand(batch)
        # in training every draw is another, a schedule may be learned, and inference tensors serve nobody else
        # (and a compiler would take the numbers of a key for constants)
        keep = not (
            torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or torch.compiler.is_compiling()
            or isinstance(self.schedule, nn.Module)
        )
        kept: dict[tuple[object, ...], Level] = self.__dict__.setdefault("_levels", {}) if keep else {}
        key = (self.t_min, self.t_max, *times.tolist()) if keep else ()
        found = kept.get(key)
        if found is not None and found.schedule is self.schedule:
            return found
        slack = 1e-6  # the ends as float32 are the ends
        if batch and not bool((times >= self.t_min * (1 - slack)).all() and (times <= self.t_max * (1 + slack)).all()):
            raise InputError(
                f"the denoiser was called at times in [{float(times.min()):.6g}, {float(times.max()):.6g}], "
                f"but knows [{self.t_min:.6g}, {self.t_max:.6g}] only"
            )
        level = Level(self.schedule, times.clamp(max=1))
        if len(kept) >= LEVELS_KEPT:
            kept.clear()
        kept[key] = level
        return level

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles start without kept levels."""
        return {name: value for name, value in self.__dict__.items() if name != "_levels"}

    def prior_std(self) -> float:
        """The standard deviation at t_max, sqrt(alpha^2 data_std^2 + sigma^2)."""
        level = Level(self.schedule, self.t_max)
        return math.hypot(float(level.alpha) * self.data_std, float(level.sigma))

    def prior(
        self, seeds: Int64[Tensor, " batch"] | Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Sample:
        """Draws at t_max, where sampling starts: (B, *shape), sample i from the stream of seeds[i] alone."""
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        return self.prior_std() * NoiseSource(seeds, shape, device, dtype).normal("prior")


class Denoiser(BaseDenoiser):
    """A network that predicts on a schedule.

    network: `network(x, c_noise, **condition) -> tensor` of x's shape, knowing nothing of diffusion.
    predicts: a name in `undiffuse.prediction.PREDICTIONS`, or a `Prediction`.
    conditioner: turns raw conditions into the network's keyword arguments; None for an unconditional network.
    t_min, t_max: the range it is trained on; by default from `schedule.finest_time` to 1.
    data_std: of the data; by default the prediction's (EDM), else 1.
    precision: what the network computes in by autocast (torch.bfloat16); None for its weights' own.
    learns_variance: the network gives twice the channels, and the second half is 2 r - 1 for r the fraction of the
    variance; by default what the network says of itself (`learned_variance`).

    Raises: InputError when the prediction is undefined on that range (noise and score where alpha = 0).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        predicts: str | Prediction = "v",
        *,
        conditioner: nn.Module | None = None,
        t_min: float | None = None,
        t_max: float = 1.0,
        data_std: float | None = None,
        precision: torch.dtype | None = None,
        learns_variance: bool | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.conditioner = network, schedule, conditioner
        said = bool(getattr(network, "learned_variance", False))
        self.learns_variance = said if learns_variance is None else learns_variance
        self.precision = precision
        self.prediction = predictions.named(predicts) if isinstance(predicts, str) else predicts
        self.t_min = schedule.finest_time if t_min is None else t_min
        self.t_max = t_max
        if not 0 < self.t_min < t_max <= 1:
            raise InputError(f"times must satisfy 0 < t_min < t_max <= 1, not t_min = {self.t_min}, t_max = {t_max}")
        self.prediction.check(schedule, self.t_min, t_max)
        self.data_std = getattr(self.prediction, "data_std", 1.0) if data_std is None else data_std

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(getattr(self.conditioner, "parts", {}))

    @property
    def droppable(self) -> tuple[str, ...]:
        """The names of the conditions that are dropped in training."""
        parts = getattr(self.conditioner, "parts", {})
        return tuple(name for name, part in parts.items() if getattr(part, "droppable", True))

    def read(self, condition: Mapping[str, object]) -> dict[str, object]:
        reader = getattr(self.conditioner, "read", None)
        return super().read(condition) if reader is None else dict(reader(condition))

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        if self.conditioner is None:
            if condition:
                raise InputError(f"this denoiser is unconditional, but was given {', '.join(condition)}")
            return {}
        return cast(Encoder, self.conditioner).encode(condition, drop)

    def forward(self, x_t: Sample, t: Time | Level, condition: Encoded | None = None) -> Estimate:
        level = self.level(t, len(x_t))
        if condition is None:
            condition = self.encode({})
        condition = {
            name: value.to(x_t.device, non_blocking=True).expand(len(x_t), *value.shape[1:])
            for name, value in condition.items()
        }
        prediction = self.prediction
        c_in = level.factor((prediction, "c_in"), lambda: prediction.c_in(level), x_t)
        c_noise = level.once(
            (prediction, "c_noise", x_t.device, x_t.dtype),
            lambda: along_batch(prediction.c_noise(level), x_t[:, :0]).flatten(),
        )
        parameter = next(self.network.parameters(), x_t)
        with torch.autocast(x_t.device.type, self.precision) if self.precision else contextlib.nullcontext():
            output = self.network(_scaled(x_t, c_in).to(parameter.dtype), c_noise, **condition)
        # the product with the schedule happens in float32 or better, whatever the network computes in
        wide = torch.float64 if x_t.dtype == torch.float64 else torch.float32
        output, fraction = output.to(wide), None
        if self.learns_variance:
            output, raw = output.chunk(2, 1)
            fraction = (raw + 1) / 2
        if output.shape != x_t.shape:
            raise InputError(f"the network gave {tuple(output.shape)} for samples of {tuple(x_t.shape)}")
        return Estimate(x_t.to(wide), output, level, prediction.target, fraction)


class Wrapper(BaseDenoiser):
    """A denoiser made from another, with its schedule, range, data and conditions: what guidance is."""

    def __init__(self, denoiser: BaseDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule, self.data_std = denoiser.schedule, denoiser.data_std
        self.t_min, self.t_max = denoiser.t_min, denoiser.t_max
        self.learns_variance = denoiser.learns_variance

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.denoiser.conditions

    @property
    def droppable(self) -> tuple[str, ...]:
        return self.denoiser.droppable

    def read(self, condition: Mapping[str, object]) -> dict[str, object]:
        return self.denoiser.read(condition)

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Wrapper":
        chosen = copy.copy(self)
        chosen._modules = {**self._modules, "denoiser": self.denoiser.rows(index)}
        return chosen

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        return self.denoiser.encode(condition, drop)


def rows_of_encoded(condition: Encoded, index: Int64[Tensor, " chosen"]) -> Encoded:
    """Some samples' encoded conditions; what stands for all stays."""
    return {
        name: value[index.to(value.device, non_blocking=True)] if len(value) > 1 else value
        for name, value in condition.items()
    }


class Given(Wrapper):
    """A denoiser with its condition filled in."""

    def __init__(self, denoiser: BaseDenoiser, condition: Encoded) -> None:
        super().__init__(denoiser)
        self.condition = condition

    @property
    def conditions(self) -> tuple[str, ...]:
        return ()

    @property
    def droppable(self) -> tuple[str, ...]:
        return ()

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Given":
        chosen = cast(Given, super().rows(index))
        chosen.condition = rows_of_encoded(self.condition, index)
        return chosen

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        if condition:
            raise InputError(f"this denoiser has its condition already, but was given {', '.join(condition)}")
        return self.condition

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return cast(Estimate, self.denoiser(x_t, t, self.condition))
