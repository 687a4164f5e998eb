"""All metrics of features by name, and many of them at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from undiffuse.errors import InputError, unknown
from undiffuse.metrics.agreement import measure_label_agreement
from undiffuse.metrics.diversity import has_pairs, measure_diversity, measure_duplication
from undiffuse.metrics.frechet import measure_frechet_distance
from undiffuse.metrics.inception_score import measure_inception_score
from undiffuse.metrics.kernel import measure_kernel_distance
from undiffuse.metrics.measurement import Measurement
from undiffuse.metrics.neighbours import measure_memorisation
from undiffuse.metrics.precision_recall import K_DENSITY, measure_precision_recall
from undiffuse.metrics.seen import Seen

Better = Literal["lower", "higher"] | None
FEWEST = 20  # samples of a class


@dataclass(frozen=True)
class Metric:
    """A metric over what was seen of samples and of real pictures.

    Args:
        function: (samples, reference[, train]) -> measurements.
        gives: the numbers it gives, by name, and whether lower or higher is better; None where neither is, but as real.
        needs: what must be there, as `WORDS` has it: "features", "scores" and "labels" are of the samples.
    """

    function: Callable[..., list[Measurement]]
    gives: Mapping[str, Better]
    needs: tuple[str, ...]

    def __call__(self, samples: Seen, reference: Seen | None = None, train: Seen | None = None) -> list[Measurement]:
        """Its numbers. Raises: InputError where something is missing that it needs, and as the function does."""
        if missing := self.lacks(samples, reference, train):
            raise InputError(f"{', '.join(self.gives)} cannot be measured without {' and '.join(missing)}")
        others = [side for side in (reference, train) if side is not None]
        for other in others:
            if (other.name, other.key) != (samples.name, samples.key):
                raise InputError(f"samples seen through {samples.name} cannot be compared with {other.name}")
            if len(other.moments.mean) != len(samples.moments.mean):
                sizes = f"{len(samples.moments.mean)} and {len(other.moments.mean)}"
                raise InputError(f"both sets need the same number of features, not {sizes}")
        return self.function(samples, reference, train) if "train" in self.needs else self.function(samples, reference)

    def lacks(self, samples: Seen, reference: Seen | None = None, train: Seen | None = None) -> list[str]:
        """What it needs and is not there, in words."""
        there = {
            "features": samples.features is not None,
            "scores": samples.scores is not None,
            "labels": samples.labels is not None,
            "scores of the labels' classes": samples.scores is not None and not samples.is_inception,
            "reference": reference is not None,
            "reference features": reference is not None and reference.features is not None,
            "train": train is not None and train.features is not None,
            "pairs": reference is None or has_pairs(samples, reference),
            "neighbours": all(side is None or (side.n or 0) > K_DENSITY for side in (samples, reference)),
        }
        return [WORDS[need] for need in self.needs if not there[need]]


WORDS = {
    "features": "the samples' features",
    "scores": "a network that gives scores",
    "labels": "the samples' labels",
    "scores of the labels' classes": "a classifier of the labels",
    "reference": "a reference",
    "reference features": "the features of the reference",
    "train": "the features of the training set",
    "pairs": "a class with 2 samples and 2 real ones",
    "neighbours": f"{K_DENSITY + 1} samples and as many real ones",
}
BOTH = ("features", "reference features")
METRICS: dict[str, Metric] = {
    "diversity": Metric(measure_diversity, {"diversity": None, "real-diversity": None}, (*BOTH, "pairs")),
    "duplication": Metric(measure_duplication, {"duplicate-share": "lower"}, BOTH),
    "frechet-distance": Metric(measure_frechet_distance, {"frechet-distance": "lower", "fid": "lower"}, ("reference",)),
    "inception-score": Metric(measure_inception_score, {"inception-score": "higher"}, ("scores",)),
    "kid": Metric(measure_kernel_distance, {"kid": "lower"}, BOTH),
    "label-agreement": Metric(
        measure_label_agreement, {"label-agreement": "higher"}, ("labels", "scores of the labels' classes")
    ),
    "memorisation": Metric(
        measure_memorisation, {"memorisation-ratio": None, "suspicious-share": "lower"}, (*BOTH, "train")
    ),
    "precision-recall": Metric(
        measure_precision_recall,
        {"precision": "higher", "recall": "higher", "density": "higher", "coverage": "higher"},
        (*BOTH, "neighbours"),
    ),
}
NUMBERS: dict[str, str] = {number: name for name, metric in METRICS.items() for number in metric.gives}


def check(names: Sequence[str]) -> None:
    """Find out before any work whether all are known. Raises: InputError, with the nearest known name."""
    for name in names:
        if name not in METRICS and name not in NUMBERS:
            raise unknown("metric", name, sorted({*METRICS, *NUMBERS}))


def better(name: str) -> Better:
    """Whether lower or higher is better of a number; None where neither is. Raises: InputError for unknown names."""
    check([name])
    if name not in NUMBERS:
        raise InputError(f"{name} is several numbers: {', '.join(METRICS[name].gives)}")
    return METRICS[NUMBERS[name]].gives[name]


def wanted(
    names: Sequence[str], samples: Seen, reference: Seen | None, train: Seen | None = None
) -> dict[str, set[str]]:
    """The metrics that `names` ask for, and of each the numbers. Nothing is measured, so features may be made up.

    Raises: InputError as `measure`.
    """
    check(names)
    found: dict[str, set[str]] = {}
    for name in names:
        chosen = set(METRICS[name].gives) if name in METRICS else {name}
        found.setdefault(name if name in METRICS else NUMBERS[name], set()).update(chosen)
    for name, numbers in found.items():
        if missing := METRICS[name].lacks(samples, reference, train):
            raise InputError(f"{name} cannot be measured without {' and '.join(missing)}")
        if numbers == {"fid"} and not samples.is_inception:
            raise InputError(
                f"FID is over the Inception-v3 features of its paper, not over {samples.name}: ask for frechet-distance"
            )
    return found


def measure(
    samples: Seen, reference: Seen | None, names: Sequence[str] | None = None, train: Seen | None = None
) -> list[Measurement]:
    """Many metrics from one pass over the pictures.

    Args:
        samples, reference: what `look` left of samples and of real pictures that the model was not trained on.
        names: metrics ("precision-recall") or single numbers ("recall"); by default all that can be measured.
        train: what it left of the training set, for memorisation.

    Returns: the measurements, metric by metric in the order of `names`.

    Raises: InputError before any work for names that are not known and for what is missing; "fid" is refused where the
        features are not those of the FID papers.
    """
    if names is None:
        names = [name for name, metric in METRICS.items() if not metric.lacks(samples, reference, train)]
    return [
        found
        for name, numbers in wanted(names, samples, reference, train).items()
        for found in METRICS[name](samples, reference, train)
        if found.metric in numbers
    ]


def by_class(
    samples: Seen,
    reference: Seen | None,
    names: Sequence[str] | None = None,
    train: Seen | None = None,
    fewest: int = FEWEST,
) -> list[Measurement]:
    """The same for each class of the samples alone, against the real ones of that class; `of` says which.

    Arguments and errors are those of `measure`.

    Raises: InputError without labels or kept features, and for classes with fewer than `fewest` pictures, by name.
    """
    sides = [side for side in (samples, reference, train) if side is not None]
    if samples.labels is None:
        raise InputError("numbers by class need the labels of the samples")
    classes: list[int] = samples.labels.unique().tolist()
    parts = {label: [side.of_class(label) for side in sides] for label in classes}
    few = {label: min(part.n or 0 for part in found) for label, found in parts.items()}
    if short := [f"{label} ({n})" for label, n in few.items() if n < fewest]:
        raise InputError(f"numbers by class need {fewest} pictures of each, which these lack: {', '.join(short)}")
    measured = []
    for label in classes:
        own, *others = parts[label]
        real = others.pop(0) if reference is not None else None
        measured += [replace(found, of=label) for found in measure(own, real, names, *others)]
    return measured
