"""How likely data are under a model: by the probability-flow ODE, and by variational bounds."""

from undiffuse.likelihood.bound import Bound, discrete_bound, variational_bound
from undiffuse.likelihood.dequantisation import DEQUANTISATIONS, Dequantised, dequantised
from undiffuse.likelihood.ode import LogProb, levels_up, log_prob
from undiffuse.likelihood.rate_distortion import RateDistortion, rate_distortion

__all__ = [
    "DEQUANTISATIONS", "Bound", "Dequantised", "LogProb", "RateDistortion", "dequantised", "discrete_bound",
    "levels_up", "log_prob", "rate_distortion", "variational_bound",
]  # fmt: skip
