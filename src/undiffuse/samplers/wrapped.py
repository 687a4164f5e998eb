"""What samplers around another sampler share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.samplers.base import Sampler
from undiffuse.schedule import Host, Schedule


@dataclass(frozen=True)
class Wrapped(Sampler):
    """A Sampler -> Sampler: it changes x between the steps of `sampler`, so those may remember nothing.

    Raises: InputError for a multistep sampler.
    """

    sampler: Sampler

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise InputError(f"the sampler of {type(self).__name__} must be a sampler, not {self.sampler!r}")
        inner: object = self.sampler
        while isinstance(inner, Sampler):
            if type(inner) is type(self):
                raise InputError(f"{type(self).__name__} cannot go around another {type(self).__name__}")
            inner = getattr(inner, "sampler", None)
        if self.sampler.retained:
            raise InputError(
                f"{type(self).__name__} changes x between the steps, so it needs a sampler that remembers none: "
                f"euler, heun, midpoint, ddim, dpm-single or dpm++-single, not {self.sampler!r}"
            )

    @property
    def stages(self) -> int:  # type: ignore[override]
        return self.sampler.stages

    def apart(self, schedule: Schedule, t: Host, s: Host) -> Float64[Tensor, "steps m batch"]:
        """The coefficients of `sampler` for steps (N, B) from t to s that do not follow upon each other."""
        steps, batch = t.shape
        pairs = torch.stack([t.flatten(), s.flatten()])
        return self.sampler.coefficients(schedule, pairs)[0].unflatten(-1, (steps, batch)).movedim(0, 1)
