"""What every guidance is: a denoiser that knows both estimates, the one without it and the one with it.

Guidances compose by wrapping one another. What contrasts estimates of a network stands innermost, thresholding
outermost, and what lies between may stand in any order:

    DynamicThreshold(Interval(Rescaled(ClassifierFree(denoiser, 3.0), 0.7), -2, 5))
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Encoded, Estimate, Given, Sample, Wrapper
from undiffuse.errors import InputError
from undiffuse.schedule import Schedule, Time, host

CONTRAST, STEER, THRESHOLD = 0, 1, 2  # from the innermost to the outermost
Scale = float | Float[Tensor, " batch"]


class Guidance(Wrapper):
    """Denoiser -> Denoiser.

    stage: where it may stand among others; differentiable: whether gradients pass through its estimate; held: names of
    attributes with a value for each sample, or one for all.

    Raises: InputError around a guidance that belongs outside this one, or around a condition that is filled in.
    """

    stage: ClassVar[int] = STEER
    differentiable: ClassVar[bool] = True
    held: ClassVar[tuple[str, ...]] = ()

    def __init__(self, denoiser: BaseDenoiser) -> None:
        super().__init__(denoiser)
        self.check_inside(denoiser)

    def check_inside(self, denoiser: BaseDenoiser) -> None:
        """Raises: InputError for a denoiser that this guidance does not go around."""
        if isinstance(denoiser, Given):
            raise InputError(f"{type(self).__name__} goes around a denoiser, and its condition is given after that")
        if isinstance(denoiser, Guidance) and denoiser.stage > self.stage:
            outer, inner = type(denoiser).__name__, type(self).__name__
            raise InputError(f"{outer} belongs outside {inner}: write {outer}({inner}(...))")

    def check_differentiable(self) -> None:
        """Raises: InputError where no gradient passes through a guidance inside this one."""
        inner = self.denoiser
        while isinstance(inner, Guidance):
            if not inner.differentiable:
                names = type(inner).__name__, type(self).__name__
                order = f"{names[0]} belongs outside {names[1]}: write {names[0]}({names[1]}(...)); "
                raise InputError(f"{order if names[0] != names[1] else ''}no gradient passes through {names[0]}")
            inner = inner.denoiser

    def check_batch(self, batch: int) -> None:
        """Raises: InputError where what is held per sample, here or inside, is for another number of samples."""
        if isinstance(self.denoiser, Guidance):
            self.denoiser.check_batch(batch)
        for name in self.held:
            for count in counts_of(getattr(self, name)):
                if count not in (1, batch):
                    raise InputError(
                        f"{type(self).__name__} holds {count} values of {name} for {batch} samples: give 1 or {batch}"
                    )

    @abstractmethod
    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        """(without this guidance, with it): the two estimates at x_t (B, ...)."""

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        """The estimate without this guidance, under the condition as this guidance encodes it."""
        return cast(Estimate, self.denoiser(x_t, t, condition))

    def forward(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return self.both(x_t, t, condition)[1]

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Guidance":
        chosen = cast(Guidance, super().rows(index))
        for name in self.held:
            setattr(chosen, name, rows_of(getattr(self, name), index))
        return chosen


def rows_of(held: Any, index: Int64[Tensor, " chosen"]) -> Any:
    """What is held for some samples: of tensors and what contains them, and of what has a method `rows` of its own.

    What stands for all, with 1 in front or without a batch, stays.
    """
    if isinstance(held, Tensor):
        return held[index.to(held.device, non_blocking=True)] if held.ndim and len(held) > 1 else held
    if isinstance(held, Mapping):
        return {name: rows_of(value, index) for name, value in held.items()}
    if isinstance(held, list):
        return [rows_of(value, index) for value in held]
    return held.rows(index) if hasattr(held, "rows") else held


def beside(held: Tensor, x: Tensor) -> Tensor:
    """`held` where x is and of its type. The host waits for no copy to a device, but for one from it."""
    return held.to(x, non_blocking=x.device.type != "cpu")


def counts_of(held: Any) -> Iterator[int]:
    """For how many samples something is held, tensor by tensor."""
    if isinstance(held, Tensor):
        yield len(held) if held.ndim else 1
    elif isinstance(held, Mapping | list):
        for value in held.values() if isinstance(held, Mapping) else held:
            yield from counts_of(value)
    else:
        yield getattr(held, "batch", 1)


def check_levels(ours: BaseDenoiser, schedule: Schedule, whose: str) -> None:
    """Raises: InputError unless another schedule has a denoiser's noise levels throughout its range.

    By the levels, not by what the schedules are called: learned ones have a name and may differ.
    """
    t = torch.linspace(ours.t_min, ours.t_max, 9, dtype=torch.float64)
    here, there = (torch.stack(each.scales(each.log_snr(t))).detach() for each in (ours.schedule, schedule))
    if not torch.allclose(here, there, rtol=1e-4, atol=1e-8):
        at = int((here - there).abs().amax(0).argmax())
        (alpha, sigma), (its_alpha, its_sigma) = here[:, at].tolist(), there[:, at].tolist()
        raise InputError(
            f"at t = {float(t[at]):.3g} x_t is {alpha:.4g} x_0 + {sigma:.4g} noise here, and {its_alpha:.4g} x_0 + "
            f"{its_sigma:.4g} noise for {whose}: both must be on one schedule"
        )


def check_gradients() -> None:
    """Raises: InputError where no gradient can be taken, not even by asking."""
    if torch.is_inference_mode_enabled():
        raise InputError("guidance by gradients runs under torch.no_grad, not under torch.inference_mode")


def scale_of(scale: Scale, what: str) -> Float64[Tensor, "..."]:
    """A scale as float64 on the host, () or (B,). Raises: InputError unless it is finite."""
    scale = host(scale)
    if scale.ndim > 1 or not bool(scale.isfinite().all()):
        raise InputError(f"the {what} scale must be finite, not {scale.tolist()}: a number, or one per sample")
    return scale


class Tempered(Guidance):
    """What goes around a guidance and takes some of it back. Raises: InputError around a denoiser that is none."""

    denoiser: Guidance

    def check_inside(self, denoiser: BaseDenoiser) -> None:
        super().check_inside(denoiser)
        if not isinstance(denoiser, Guidance):
            raise InputError(
                f"{type(self).__name__} goes around a guidance, such as ClassifierFree(denoiser, 3.0), "
                f"not around {type(denoiser).__name__}"
            )

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        return self.denoiser.plain(x_t, t, condition)
