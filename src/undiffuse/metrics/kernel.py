"""The kernel distance: how far apart two sets of features lie, without an assumption about their form."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.measurement import Measurement, interval
from undiffuse.metrics.moments import check_features
from undiffuse.metrics.seen import Seen

BLOCK = 2048  # rows compared at once: 32 MB of kernel values


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[float, float]:
    """The squared maximum mean discrepancy under the cubic kernel, without bias, and its standard error.

        k(x, y) = (x.y / d + 1)^3
        MMD^2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    over the whole sets, in blocks, in float64. Published values of KID are often means over subsets of 1,000, of the
    same expectation. With the kernel centred on both sides, c(x, y), and the row means of each set's own kernel less
    those of the kernel between the sets, h, of variance s^2, the error of a U-statistic is

        error^2 = 4 s_a^2 / n + 4 s_b^2 / m - 2 C_aa / (n (n - 1)) - 2 C_bb / (m (m - 1)) - 4 C_ab / (n m)

    where C is the mean of c^2. The row means scatter by their own finite n too, which is taken out again. So it holds
    for sets of one law as well, where the first order is nothing; it is never less than the second order alone.

    Args:
        a, b: features, at least 2 rows each and the same number of columns.

    Returns: the distance, below 0 by chance where the sets are alike, and the standard error.

    Raises: InputError for fewer than 2 rows, unequal columns, or values that are not finite.

    Reference: Binkowski et al. 2018, eq. 4 (KID, over Inception-v3 features); Gretton et al. 2012, lemma 6; Sutherland
    et al. 2017, section 3 (the variance).
    """
    for features in (a, b):
        check_features(features, at_least=2)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"both sets need the same number of features, not {a.shape[1]} and {b.shape[1]}")
    n, m = len(a), len(b)
    of_a, square_a = _within(a)
    of_b, square_b = _within(b)
    between, across, square_ab = _between(a, b)
    distance = of_a.mean() + of_b.mean() - 2 * between.mean()
    second = (
        2 * _centred(square_a, of_a, of_a) / (n * (n - 1))
        + 2 * _centred(square_b, of_b, of_b) / (m * (m - 1))
        + 4 * _centred(square_ab, between, across) / (n * m)
    )
    variance = 4 * float((of_a - between).var()) / n + 4 * float((of_b - across).var()) / m - second
    return float(distance), math.sqrt(max(variance, second))


def measure_kernel_distance(samples: Seen, reference: Seen) -> list[Measurement]:
    """The kernel distance, KID over the features of the FID papers. Raises: InputError as `kernel_distance`."""
    assert samples.features is not None and reference.features is not None
    value, error = kernel_distance(samples.features, reference.features)
    n, m = len(samples.features), len(reference.features)
    return [Measurement("kid", value, error, "U-statistic", interval(value, error), n, m, samples.settings)]


def _within(a: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " n"], float]:
    """The mean of each row of the set's own kernel without its diagonal, and the mean square of all such values."""
    sums, squares = torch.zeros(len(a), dtype=torch.float64), 0.0
    starts = range(0, len(a), BLOCK)
    for i in starts:
        for j in starts[i // BLOCK :]:
            values = _values(a[i : i + BLOCK], a[j : j + BLOCK])
            if i == j:
                values.fill_diagonal_(0)
            else:
                sums[j : j + BLOCK] += values.sum(0)
            sums[i : i + BLOCK] += values.sum(1)
            squares += (1 if i == j else 2) * float(values.square_().sum())
    return sums / (len(a) - 1), squares / (len(a) * (len(a) - 1))


def _between(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"], float]:
    """The means of the rows and of the columns of the kernel between two sets, and its mean square."""
    rows, columns, squares = *(torch.zeros(len(side), dtype=torch.float64) for side in (a, b)), 0.0
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            values = _values(a[i : i + BLOCK], b[j : j + BLOCK])
            rows[i : i + BLOCK] += values.sum(1)
            columns[j : j + BLOCK] += values.sum(0)
            squares += float(values.square_().sum())
    return rows / len(b), columns / len(a), squares / (len(a) * len(b))


def _values(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    one = torch.ones((), dtype=torch.float64)
    products = torch.addmm(one, a.cpu().double(), b.cpu().double().T, alpha=1 / a.shape[1])
    return products.square().mul_(products)


def _centred(square: float, rows: Float64[Tensor, " n"], columns: Float64[Tensor, " m"]) -> float:
    """The mean square of a kernel whose rows and columns have been made to sum to 0, from its own mean square."""
    mean = float(rows.mean())
    spread = float(rows.square().mean() + columns.square().mean()) - 2 * mean * mean
    return max(0.0, square - mean * mean - spread)
