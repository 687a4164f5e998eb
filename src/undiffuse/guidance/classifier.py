"""Classifier guidance (Dhariwal & Nichol 2021): the gradient of a classifier that knows noise moves the estimate."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded, Estimate, Sample
from undiffuse.errors import InputError, unknown
from undiffuse.guidance.base import STEER, Guidance, Scale, check_gradients, check_levels, scale_of
from undiffuse.guidance.estimates import tilted
from undiffuse.prediction import NOISE_LABELS, Level
from undiffuse.schedule import Schedule, Time, along_batch, host


@runtime_checkable
class ClassLaw(Protocol):
    """The law of a sample's class, given the sample under noise.

    schedule: whose times it is told; classes: their names; log_prob(x_t, t): log p(y | x_t, t), (B, classes), which can
    be differentiated by x_t.
    """

    @property
    def schedule(self) -> Schedule: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def log_prob(self, x_t: Sample, t: Time) -> Float[Tensor, "batch classes"]: ...


class NoisyClassifier(nn.Module):
    """A network that classifies samples at any noise level: a `ClassLaw` that can be trained.

        log p(y | x_t, t) = log softmax(prior + c_out network(c_in x_t, c_noise)),
        c_in = 1 / sqrt(V),  c_out = alpha data_std / sqrt(V),  V = sigma^2 + alpha^2 data_std^2

    c_in gives the network an input of unit variance. c_out makes the gradient of the logits vanish with alpha as that
    of the true law does, which is alpha / sigma^2 (mean of y - mean) there; guidance divides by alpha.

    network: `network(x, c_noise) -> (B, classes)`; t_min, t_max: the range it is trained on; precision: what the
    network computes in by autocast, None for its weights' own.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        classes: Sequence[str],
        *,
        data_std: float = 1.0,
        t_min: float | None = None,
        t_max: float = 1.0,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.classes = network, schedule, tuple(classes)
        self.data_std, self.precision = data_std, precision
        self.t_min, self.t_max = schedule.finest_time if t_min is None else t_min, t_max
        self.prior = nn.Parameter(torch.zeros(len(self.classes)))

    def log_prob(self, x_t: Sample, t: Time) -> Float[Tensor, "batch classes"]:
        """log p(y | x_t, t) in nats, float32 or better."""
        level = Level(self.schedule, host(t).expand(len(x_t)))
        root = (level.sigma.square() + (level.alpha * self.data_std).square()).sqrt()
        c_noise = along_batch(NOISE_LABELS["log-snr"](level), x_t[:, :0]).flatten()
        with torch.autocast(x_t.device.type, self.precision) if self.precision else contextlib.nullcontext():
            logits = self.network((x_t * along_batch(1 / root, x_t)).to(self.prior.dtype), c_noise)
        logits = logits.to(torch.promote_types(x_t.dtype, torch.float32))
        return (self.prior + along_batch(level.alpha * self.data_std / root, logits) * logits).log_softmax(1)


class Classifier(Guidance):
    """noise~ = noise - sigma scale grad_x log p(y | x_t, t) (Dhariwal & Nichol 2021, algorithm 2; see `tilted`).

    It steers a model that knows no classes, and one that does: the condition `name` is the class, by number or name,
    and goes to the denoiser inside as well where that one knows it.

    classifier: a `NoisyClassifier`, or another `ClassLaw` of the same schedule; scale: a number, or one per sample
    (B,): 0 is the denoiser itself, without a call of the classifier, and 1 on a model without classes is Bayes.

    Raises: InputError for a classifier of other noise levels, and a scale that is not finite.
    """

    stage = STEER
    held = ("scale",)

    def __init__(self, denoiser: BaseDenoiser, classifier: ClassLaw, scale: Scale, name: str = "label") -> None:
        super().__init__(denoiser)
        check_levels(denoiser, classifier.schedule, "the classifier")
        first, last = getattr(classifier, "t_min", self.t_min), getattr(classifier, "t_max", self.t_max)
        if first > self.t_min * (1 + 1e-6) or last < self.t_max * (1 - 1e-6):
            raise InputError(
                f"the classifier knows times in [{first:.6g}, {last:.6g}], and the denoiser is called in "
                f"[{self.t_min:.6g}, {self.t_max:.6g}]: train one on the same range"
            )
        self.classifier, self.name = classifier, name
        self.scale = scale_of(scale, "classifier's")
        outer = sum(isinstance(module, Classifier) for module in denoiser.modules())
        self.key = f"{name} of classifier {outer}"  # of its own, also around another classifier

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.denoiser.conditions, self.name)))

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """What the denoiser inside takes, and the class (B,), -1 for none, under `key`."""
        known = self.denoiser.conditions
        below = {name: value for name, value in condition.items() if name != self.name or name in known}
        dropped = drop.get(self.name) if isinstance(drop, Mapping) else drop
        drop_below = {name: mask for name, mask in drop.items() if name in known} if isinstance(drop, Mapping) else drop
        if condition.get(self.name) is None:
            raise InputError(f"classifier guidance needs a class to guide to: give {self.name}=...")
        asked = self._numbers(condition[self.name])
        if dropped is not None:
            asked = torch.where(dropped, -1, asked.to(dropped.device, non_blocking=True))
        return {**self.denoiser.encode(below, drop_below), self.key: asked}

    def _numbers(self, given: object) -> Int64[Tensor, " batch"]:
        """Classes by number or name, one or one per sample. Raises: InputError for those that are not known."""
        classes = list(self.classifier.classes)
        if isinstance(given, str):
            given = [given]
        if isinstance(given, Sequence):
            for value in given:
                if isinstance(value, str) and value not in classes:
                    raise unknown("class", value, classes)
            given = [classes.index(value) if isinstance(value, str) else value for value in given]
        numbers = torch.as_tensor(given).reshape(-1)
        if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise InputError(f"{self.name} must be integers or names of classes, not {numbers.dtype}")
        if numbers.device.type == "cpu" and bool(((numbers < 0) | (numbers >= len(classes))).any()):
            wrong = int(numbers[(numbers < 0) | (numbers >= len(classes))][0])
            raise InputError(f"{self.name} {wrong} is out of range: the classifier knows 0 to {len(classes) - 1}")
        return numbers.long()

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        self.check_batch(len(x_t))
        condition = self.encode({}) if condition is None else condition
        plain = self.plain(x_t, t, condition)
        if not bool(self.scale.any()):
            return plain, plain
        return plain, tilted(plain, self._gradient(plain.x_t, t, condition[self.key]), self.scale)

    def plain(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> Estimate:
        condition = self.encode({}) if condition is None else condition
        below = {name: value for name, value in condition.items() if name != self.key}
        return cast(Estimate, self.denoiser(x_t, t, below))

    def _gradient(self, x_t: Sample, t: Time, asked: Int64[Tensor, " asked"]) -> Sample:
        """grad_x log p(y | x_t, t) for the class that each sample is asked for; 0 where that is none."""
        check_gradients()
        followed = torch.is_grad_enabled() and x_t.requires_grad  # by another guidance, or a likelihood
        asked = asked.to(x_t.device, non_blocking=True).expand(len(x_t))[:, None]
        with torch.enable_grad():
            x = x_t if followed else x_t.detach().requires_grad_()
            of_class = self.classifier.log_prob(x, t).gather(1, asked.clamp(min=0)) * (asked >= 0)
            (gradient,) = torch.autograd.grad(of_class.sum(), x, create_graph=followed)
        return gradient
