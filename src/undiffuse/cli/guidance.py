"""Guidance on the command line: options that become one function Denoiser -> Denoiser."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import undiffuse
from undiffuse.cli.conditions import given_conditions
from undiffuse.denoiser import BaseDenoiser
from undiffuse.errors import InputError
from undiffuse.guidance import (
    Autoguidance,
    Classifier,
    ClassifierFree,
    DynamicThreshold,
    Guidance,
    Interval,
    NoisyClassifier,
    Rescaled,
    StaticThreshold,
)
from undiffuse.pipeline import Guided, Pipeline, Steering

NegativeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A condition to guide away from, in the place of no condition."),
]
WeakOption = Annotated[
    str | None,
    typer.Option(metavar="[RUN][@STEP]", help="A weaker model to guide away from; @STEP: this run's snapshot."),
]
IntervalOption = Annotated[
    str | None, typer.Option(metavar="LOW,HIGH", help="Guide where LOW <= log-SNR <= HIGH; elsewhere at half the cost.")
]
RescaleOption = Annotated[
    float | None, typer.Option(help="Share, 0 to 1, by which guided samples get the spread of unguided ones.")
]
ThresholdOption = Annotated[
    str | None, typer.Option(metavar="static|dynamic[:PERCENTILE]", help="Keep estimates in the range of pictures.")
]
SequentialOption = Annotated[
    bool, typer.Option("--sequential", help="Evaluate one condition after the other, where memory is short.")
]
ClassifierOption = Annotated[
    float | None, typer.Option(help="Scale of guidance by the run's classifier (`undiffuse train-classifier`).")
]


@dataclass(frozen=True)
class Options:
    """What was asked for beside the scale. Empty: classifier-free guidance by the scale alone."""

    negative: Sequence[str] | None = None
    weak: str | None = None
    interval: str | None = None
    rescale: float | None = None
    threshold: str | None = None
    sequential: bool = False
    classifier: float | None = None

    def facts(self) -> dict[str, Any]:
        """What was given, for the metadata of pictures."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}

    def guidance(
        self, model: Pipeline, run: Path, scale: float | None, given: Sequence[str], law: NoisyClassifier | None = None
    ) -> Guided:
        """What `Pipeline.sample` takes as its guidance, for those of the model's conditions that are given.

        run: the model's folder; law: the run's classifier, where it is to guide.

        Raises: InputError for options that contradict one another, or that nothing is there for.
        """
        if not self.facts():
            return scale
        if scale is not None and scale != 1.0 and not given and self.weak is None:
            raise InputError(f"--guidance {scale:g} needs a condition of the model to guide to, such as --label 0")
        weight = model.scale(scale, bool(given) or self.weak is not None)
        contrast = self._contrast(model, run, weight, given)
        limits = [f"--{name}" for name in ("interval", "rescale", "sequential") if self.facts().get(name)]
        if contrast is None and limits:
            raise InputError(f"{' and '.join(limits)} is about guidance, and there is none: give --guidance above 1")
        low, high = _two_numbers(self.interval) if self.interval is not None else (0.0, 0.0)
        threshold = _threshold(self.threshold)

        def steer(denoiser: BaseDenoiser) -> BaseDenoiser:
            if contrast is not None:
                guidance = contrast(denoiser)
                guidance = guidance if self.rescale is None else Rescaled(guidance, self.rescale)
                denoiser = guidance if self.interval is None else Interval(guidance, low, high)
            if law is not None and self.classifier is not None:
                denoiser = Classifier(denoiser, law, self.classifier, model.label or "label")
            return threshold(denoiser)

        steer(model.denoiser)
        return steer

    def _contrast(self, model: Pipeline, run: Path, scale: float, given: Sequence[str]) -> Any:
        """Denoiser -> Guidance; None where there is nothing to contrast."""
        if self.weak is not None:
            if self.negative:
                raise InputError("--weak and --negative both stand in the place of no condition: give one of them")
            if self.sequential:
                raise InputError("--weak evaluates its two models one after the other anyway: leave --sequential out")
            if scale == 1.0:
                raise InputError("--weak guides away from a weaker model, and at --guidance 1 not at all: give more")
            weak = _weak(self.weak, model, run)
            return lambda denoiser: Autoguidance(denoiser, weak.denoiser, scale)
        if scale == 1.0 or not given:
            if self.negative:
                raise InputError("--negative guides away from a condition: give a condition, and --guidance above 1")
            return None
        model.check_guidance(scale, given)
        negative = given_conditions(model, None, self.negative, 1, option="--negative") if self.negative else None

        def classifier_free(denoiser: BaseDenoiser) -> Guidance:
            return ClassifierFree(denoiser, scale, negative=negative, sequential=self.sequential)

        return classifier_free


def _weak(text: str, model: Pipeline, run: Path) -> Pipeline:
    path, at, step = text.rpartition("@")
    weak = undiffuse.load(path or run, step=int(step)) if at and step.isdecimal() else undiffuse.load(text)
    for name, part in model.parts.items():
        classes = [getattr(each, "classes", None) for each in (part, weak.parts.get(name))]
        if classes[0] != classes[1]:
            raise InputError(
                f"--weak {text} knows other classes of {name} than this model: {classes[1]}, not {classes[0]}"
            )
    if weak.shape != model.shape:
        raise InputError(f"--weak {text} makes samples of shape {weak.shape}, and this model of {model.shape}")
    return weak


def _two_numbers(text: str) -> tuple[float, float]:
    number = r"\s*([-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?))\s*"
    match = re.fullmatch(f"{number},{number}", text)
    if not match:
        raise InputError(f"--interval takes two log-SNRs with a comma between them, such as -2,5, not {text!r}")
    return float(match[1]), float(match[2])


def _threshold(text: str | None) -> Steering:
    """The thresholding that is asked for, as a function of the denoiser. Raises: InputError."""
    if text is None:
        return lambda denoiser: denoiser
    if text == "static":
        return StaticThreshold
    match = re.fullmatch(r"dynamic(?::(0?\.\d+|1(?:\.0*)?))?", text)
    if not match:
        raise InputError(f"--threshold is static, dynamic, or dynamic:0.99 with another percentile, not {text!r}")
    percentile = float(match[1] or 0.995)
    return lambda denoiser: DynamicThreshold(denoiser, percentile)
