"""Autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself")."""

from collections.abc import Mapping
from typing import cast

from jaxtyping import Int64
from torch import Tensor

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import CONTRAST, Guidance, Scale, check_levels, scale_of
from undiffuse.guidance.estimates import between
from undiffuse.schedule import Time

WEAK = "weak."  # before the names of what the weak denoiser's encoder gives


class Autoguidance(Guidance):
    """guided = weak + scale (strong - weak), both under the same condition.

    denoiser: the strong one; weak: a smaller network, or one that was trained for less time, on the same schedule; it
    may predict something else, and know another range of times, of which what both know is left.
    scale: a number, or one per sample (B,): 0 is the weak one, 1 the strong one (alone: the weak is not evaluated),
    above 1 guided.

    Either may be guided itself: Autoguidance(ClassifierFree(strong, 2.0), ClassifierFree(weak, 2.0), 1.5).

    Raises: InputError for different schedules, and for ranges of times that do not overlap.
    """

    stage = CONTRAST
    held = ("scale",)

    def __init__(self, denoiser: BaseDenoiser, weak: BaseDenoiser, scale: Scale) -> None:
        super().__init__(denoiser)
        self.check_inside(weak)
        check_levels(denoiser, weak.schedule, "the weak denoiser")
        self.weak, self.scale = weak, scale_of(scale, "guidance")
        self.t_min, self.t_max = max(denoiser.t_min, weak.t_min), min(denoiser.t_max, weak.t_max)
        if not self.t_min < self.t_max:
            raise InputError(
                f"the strong denoiser knows times in [{denoiser.t_min:.6g}, {denoiser.t_max:.6g}], the weak one in "
                f"[{weak.t_min:.6g}, {weak.t_max:.6g}]: they must overlap"
            )

    def check_inside(self, denoiser: BaseDenoiser) -> None:
        super().check_inside(denoiser)
        if isinstance(denoiser, Autoguidance):
            raise InputError("Autoguidance cannot go around Autoguidance: it contrasts two models")

    def rows(self, index: Int64[Tensor, " chosen"]) -> "Autoguidance":
        chosen = cast(Autoguidance, super().rows(index))
        chosen._modules["weak"] = self.weak.rows(index)
        return chosen

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """What the strong encoder gives, and what the weak one gives under names that begin with "weak."."""
        weak = self.weak.encode(condition, drop)
        return {**self.denoiser.encode(condition, drop), **{WEAK + name: value for name, value in weak.items()}}

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        self.check_batch(len(x_t))
        condition = self.encode({}) if condition is None else condition
        strong = self.plain(x_t, t, condition)
        if bool((self.scale == 1).all()):
            return strong, strong
        its_own = {name.removeprefix(WEAK): value for name, value in condition.items() if name.startswith(WEAK)}
        return strong, between(self.weak(x_t, t, its_own), strong, self.scale)

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        condition = self.encode({}) if condition is None else condition
        self.level(t, len(x_t))  # a time that both know
        its_own = {name: value for name, value in condition.items() if not name.startswith(WEAK)}
        return cast(Estimate, self.denoiser(x_t, t, its_own))
