"""Training objectives: time law x weight x distance, one loss per sample.

    loss = weight(t) |x0_hat(x_t, t) - x_0|^2,        x_t = alpha x_0 + sigma noise

A weight is defined once, on the error of x_0, whatever the network predicts. An error of the prediction F is an error
of x_0 times c_out, so the loss is computed as weight c_out^2 |F_hat - F|^2 with one float64 factor per sample, which
stays finite where the error of x_0 alone would not.
"""

from undiffuse.objective.base import BaseObjective, Draws, Loss, PerSample
from undiffuse.objective.times import (
    TIME_LAWS,
    ImportanceTime,
    LogitNormalTime,
    LogNormalTime,
    StratifiedTime,
    TableTime,
    TimeLaw,
    UniformTime,
)
from undiffuse.objective.uncertainty import Uncertainty
from undiffuse.objective.variational import VariationalBound
from undiffuse.objective.weight import EDM, P2, SNR, WEIGHTS, Bound, MinSNR, Sigmoid, Simple, Uniform, Weight
from undiffuse.objective.weighted import Objective

OBJECTIVES: dict[str, type[BaseObjective]] = {"weighted": Objective, "variational": VariationalBound}

__all__ = [
    "EDM", "OBJECTIVES", "P2", "SNR", "TIME_LAWS", "WEIGHTS", "BaseObjective", "Bound", "Draws", "ImportanceTime",
    "LogNormalTime", "LogitNormalTime", "Loss", "MinSNR", "Objective", "PerSample", "Sigmoid", "Simple",
    "StratifiedTime", "TableTime", "TimeLaw", "Uncertainty", "Uniform", "UniformTime", "VariationalBound", "Weight",
]  # fmt: skip
