"""Weights of an objective, each defined once: on the error of x_0."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.prediction import Level, Prediction

PerSample = Float64[Tensor, " batch"]


class Weight(ABC):
    """A weight of |x_0 error|^2 as a function of the noise level.

    integrates: whether the weighted error is the integrand of an integral over uniform time, not a matter of taste.
    """

    integrates: ClassVar[bool] = False

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

    def __post_init__(self) -> None:
        if self.data_std is not None and not 0 < self.data_std < math.inf:
            raise InputError(f"data_std of the weight edm must be above 0 and finite, not {self.data_std}")

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        # the preconditioning's own, so that the two cancel to weight 1 on what the network predicts
        data_std = getattr(prediction, "data_std", 0.5) if self.data_std is None else self.data_std
        return 1 / data_std**2 + level.log_snr.exp()


@dataclass(frozen=True)
class Sigmoid(Weight):
    """sigmoid(bias - log_snr) on the error of the noise (Hoogeboom et al. 2024)."""

    bias: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise InputError(f"the bias of the weight sigmoid must be finite, not {self.bias}")

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        # snr sigmoid(b - l) = e^b sigmoid(l - b), in logarithms so that neither factor overflows
        return torch.exp(self.bias + torch.nn.functional.logsigmoid(level.log_snr - self.bias))


@dataclass(frozen=True)
class P2(Weight):
    """(k + snr)^-p on the error of the noise: less weight where pictures differ in invisible detail (Choi et al. 2022).

    k, p: their k and gamma, both 1 there.
    """

    k: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.k < math.inf and math.isfinite(self.p)):
            raise InputError(f"P2 needs k above 0 and a finite p, not k={self.k}, p={self.p}")

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        # snr (k + snr)^-p, in logarithms so that neither end overflows
        log_snr = level.log_snr
        return torch.exp(log_snr - self.p * torch.logaddexp(log_snr, torch.full_like(log_snr, math.log(self.k))))


@dataclass(frozen=True)
class Bound(Weight):
    """-1/2 d snr / dt, with which the loss is the continuous-time variational bound in nats per dimension.

    On the error of the noise that is -1/2 d log_snr / dt (Kingma et al. 2021, eq. 17 and 18). The bound's other parts,
    of the prior and of the last step to the data, have nothing to learn: `undiffuse.likelihood` has them.
    """

    integrates = True

    def __call__(self, level: Level, prediction: Prediction) -> PerSample:
        # where alpha = 0 the SNR has stopped falling, while its logarithm falls infinitely fast
        return torch.where(level.log_snr.isneginf(), 0.0, -0.5 * level.log_snr_dot * level.log_snr.exp())


WEIGHTS: dict[str, type[Weight]] = {
    "simple": Simple,
    "uniform": Uniform,
    "snr": SNR,
    "min-snr": MinSNR,
    "p2": P2,
    "edm": EDM,
    "sigmoid": Sigmoid,
    "bound": Bound,
}
