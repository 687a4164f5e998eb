"""How likely data are under a model: by the probability-flow ODE, and by variational bounds."""

from undiffuse.likelihood.bound import Bound, variational_bound
from undiffuse.likelihood.ode import LogProb, log_prob

__all__ = ["Bound", "LogProb", "log_prob", "variational_bound"]
