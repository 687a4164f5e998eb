"""How much a statistic would scatter, were the samples drawn again: by drawing from the samples."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.errors import InputError

RESAMPLES = 1000
AT_ONCE = 2**22  # numbers: 32 MB, and fewer than torch's quantiles take


def bootstrap(
    statistic: Callable[..., Tensor], *sets: Float[Tensor, "..."], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The standard deviation of a statistic over resamples of each set, with replacement, and their middle 95 %.

    Args:
        statistic: takes one tensor (resamples, N) for each set, and gives (resamples,).
        sets: values (N,), one a sample; N >= 2.

    Raises: InputError for a set of fewer than 2.

    Reference: Efron 1979; the interval is that of percentiles (Efron & Tibshirani 1993, chapter 13).
    """
    for values in sets:
        if values.ndim != 1 or len(values) < 2:
            raise InputError(f"a bootstrap needs 2 values (N,) or more, not {tuple(values.shape)}")
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, AT_ONCE // max(len(values) for values in sets))
    parts = []
    for first in range(0, resamples, at_once):
        count = min(at_once, resamples - first)
        rows = [torch.randint(len(values), (count, len(values)), generator=generator) for values in sets]
        parts.append(statistic(*(values.cpu().double()[row] for values, row in zip(sets, rows, strict=True))))
    found = torch.cat(parts)
    low, high = (float(q) for q in found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)))
    return float(found.std()), (low, high)
