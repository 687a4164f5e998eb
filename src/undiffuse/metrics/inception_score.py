"""Inception Score: is each sample surely of some class, and are all classes there?"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.measurement import Measurement, interval
from undiffuse.metrics.seen import Seen

SPLITS = 10


def inception_score(scores: Float[Tensor, "n classes"], splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """exp of the mean divergence of a sample's classes from the classes of all samples.

        IS = exp(mean_x KL(p(y | x) || p(y))),        p(y) = mean_x p(y | x)

    in each of `splits` parts of the shuffled samples; 1 at worst, the number of classes at best. It sees no real image,
    so it says nothing of how like real ones samples are. It rises with the number of samples in a part.

    Args:
        scores: logits, one row a sample; N >= `splits`.
        splits: parts, 1 or more. seed: of the shuffling.

    Returns: the mean over the parts, and their standard deviation (0 for one part), as it is published.

    Raises: InputError for scores that are no finite (N, classes) and for splits out of range.

    Reference: Salimans et al. 2016, section 4 (10 splits).
    """
    if scores.ndim != 2 or scores.shape[1] < 2 or not scores.isfinite().all():
        raise InputError(f"scores must be finite and (N, classes) with 2 classes or more, not {tuple(scores.shape)}")
    if not 1 <= splits <= len(scores):
        raise InputError(f"splits must lie in [1, {len(scores)}], the number of samples, not {splits}")
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    logs = scores.detach().cpu().double()[order].log_softmax(1)
    parts = torch.stack([_divergence(part) for part in logs.tensor_split(splits)]).exp()
    return float(parts.mean()), float(parts.std()) if splits > 1 else 0.0


def measure_inception_score(samples: Seen, reference: Seen | None = None) -> list[Measurement]:
    """The Inception Score; its error is the standard deviation of the parts over the root of their number."""
    assert samples.scores is not None
    value, deviation = inception_score(samples.scores, min(SPLITS, len(samples.scores)))
    splits = min(SPLITS, len(samples.scores))
    error = deviation / math.sqrt(splits) if splits > 1 else None
    settings = {**samples.settings, "splits": splits}
    between = interval(value, error, low=1, high=samples.scores.shape[1])
    return [Measurement("inception-score", value, error, "splits", between, len(samples.scores), None, settings)]


def _divergence(logs: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    marginal = logs.exp().mean(0).log()
    # where all p(y | x) of a class are 0 in float64, so is their mean, and 0 log 0 counts as 0
    return (logs.exp() * (logs - marginal)).nan_to_num(0.0).sum(1).mean()
