"""How different samples are from one another, and whether some are there twice."""

import itertools
import math

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.agreement import wilson_interval
from undiffuse.metrics.measurement import Measurement, interval, mean
from undiffuse.metrics.moments import check_features
from undiffuse.metrics.neighbours import nearest_other
from undiffuse.metrics.seen import Seen

BLOCK = 1024  # rows compared at once
NEAR = 0.01  # the share of real ones that are as near another real one as a double


def pairwise_distance(features: Float[Tensor, "n d"]) -> tuple[float, float]:
    """The mean distance between two samples, and its standard error as a U-statistic.

        mean_{i != j} |x_i - x_j|,        error^2 = 4 s^2 / n

    with s^2 the variance of the samples' mean distances to the others.

    Raises: InputError for fewer than 2 rows and values that are not finite.

    Reference: Hoeffding 1948, A class of statistics with asymptotically normal distribution.
    """
    check_features(features, at_least=2)
    x = features.detach().cpu().double()
    rows = torch.cat([_sums(block, x) for block in x.split(BLOCK)]) / (len(x) - 1)
    return float(rows.mean()), 2 * float(rows.std()) / math.sqrt(len(x))


def measure_diversity(samples: Seen, reference: Seen) -> list[Measurement]:
    """The mean distance between two samples of one condition, "diversity", and between two real ones, "real-diversity".

    Where both sets have labels it is the mean over the classes that both have twice; else that of the whole sets.

    Raises: InputError where no class is there twice in both.
    """
    parts = _by_label(samples, reference)
    pairs = [(pairwise_distance(a), pairwise_distance(b)) for a, b in parts]
    settings = {**samples.settings, "within": "classes" if samples.labels is not None else "the set"}

    def over_classes(metric: str, found: list[tuple[float, float]]) -> Measurement:
        value = sum(distance for distance, _ in found) / len(found)
        error = math.sqrt(sum(error * error for _, error in found)) / len(found)
        between = interval(value, error, low=0)
        n, m = (sum(len(part[side]) for part in parts) for side in (0, 1))
        if metric == "real-diversity":
            return Measurement(metric, value, error, "U-statistic", between, m, None, settings)
        return Measurement(metric, value, error, "U-statistic", between, n, m, settings)

    ours, real = zip(*pairs, strict=True)
    return [over_classes("diversity", list(ours)), over_classes("real-diversity", list(real))]


def has_pairs(samples: Seen, reference: Seen) -> bool:
    """Whether some class is there twice in both; where either has no labels, whether both are of 2 or more."""
    if samples.labels is None or reference.labels is None:
        return all(side.n is None or side.n > 1 for side in (samples, reference))
    return bool(_twice(samples.labels) & _twice(reference.labels))


def draw_distances(draws: UInt8[Tensor, "n draws c h w"]) -> Float64[Tensor, " n"]:
    """How far apart several pictures of one condition are: the mean over pairs, for each of N conditions.

        mean_{i < j} sqrt(mean over pixels and channels of (x_i - x_j)^2)

    in grey levels; 0 where all draws are one picture.

    Raises: InputError unless draws are uint8 (N, D, C, H, W) with D >= 2.
    """
    if draws.dtype != torch.uint8 or draws.ndim != 5 or draws.shape[1] < 2 or not draws.numel():
        raise InputError(f"draws must be uint8 (N, D, C, H, W) with D >= 2, not {draws.dtype} {tuple(draws.shape)}")
    x = draws.detach().cpu().flatten(2).double()
    pairs = [(x[:, i] - x[:, j]).square().mean(1).sqrt() for i, j in itertools.combinations(range(x.shape[1]), 2)]
    return torch.stack(pairs).mean(0)


def measure_draw_diversity(draws: UInt8[Tensor, "n draws c h w"]) -> Measurement:
    """The mean of `draw_distances`, with its standard error over conditions. Raises: InputError as it does."""
    return mean("draw-diversity", draw_distances(draws), draws=draws.shape[1])


def measure_duplication(samples: Seen, reference: Seen) -> list[Measurement]:
    """The share of samples that have a double among the samples.

    A double is nearer than all but 1 % of real ones are to their own nearest other, among as many of both (the first).
    So it is about 0.01 for samples of the real law; of two copies both count.

    Raises: InputError for fewer than 2 samples or real ones.
    """
    assert samples.features is not None and reference.features is not None
    n = min(len(samples.features), len(reference.features))
    threshold = nearest_other(reference.features[:n]).double().quantile(NEAR)
    doubles = nearest_other(samples.features[:n]).double() <= threshold
    share = float(doubles.double().mean())
    between, error = wilson_interval(int(doubles.sum()), n), math.sqrt(share * (1 - share) / n)
    by = "over samples, the threshold as given"
    return [Measurement("duplicate-share", share, error, by, between, n, n, samples.settings)]


def _by_label(samples: Seen, reference: Seen) -> list[tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]]:
    assert samples.features is not None and reference.features is not None
    if not has_pairs(samples, reference):
        raise InputError("diversity needs a class with 2 samples and 2 real ones; there is none")
    if samples.labels is None or reference.labels is None:
        return [(samples.features, reference.features)]
    return [
        (samples.features[samples.labels == label], reference.features[reference.labels == label])
        for label in sorted(_twice(samples.labels) & _twice(reference.labels))
    ]


def _twice(labels: Int64[Tensor, " n"]) -> set[int]:
    classes, counts = labels.unique(return_counts=True)
    return set(classes[counts > 1].tolist())


def _sums(rows: Float64[Tensor, "n d"], others: Float64[Tensor, "m d"]) -> Float64[Tensor, " n"]:
    """The sum of the distances from each row to all others, in blocks."""
    return torch.stack([torch.cdist(rows, block).sum(1) for block in others.split(BLOCK)]).sum(0)
