"""Precision, recall, density and coverage: are samples like real ones, and are all real ones like some sample?"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.agreement import wilson_interval
from undiffuse.metrics.measurement import Measurement, interval
from undiffuse.metrics.moments import check_features
from undiffuse.metrics.seen import Seen

K, K_DENSITY = 3, 5  # as in the papers
BLOCK = 1024  # rows compared at once: 8 MB of distances
SPARE_CANDIDATES = 4
SLACK = 1 + 1e-12  # one squared distance, summed in another order


@dataclass
class Neighbourhoods:
    """Who lies in whose ball, where a ball reaches from a feature to its k-th nearest other of its own set.

    Args:
        in_real: whether each generated feature lies in the ball of a real one (k); in_generated: the other way.
        balls: in how many balls of real ones each generated feature lies (k_density).
        covered: whether the ball of each real one holds a generated one (k_density).
    """

    in_real: Bool[Tensor, " m"]
    in_generated: Bool[Tensor, " n"]
    balls: Int64[Tensor, " m"]
    covered: Bool[Tensor, " n"]


def precision_recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = K) -> dict[str, float | int]:
    """Improved precision and recall, over the balls that reach to each feature's k-th nearest of its own set.

        precision    share of generated features that lie in the ball of some real one
        recall       share of real features that lie in the ball of some generated one

    Precision falls with bad samples, recall with missing kinds of samples. Both depend on n, on k and on the features:
    compare at equal n, with a real-against-real value beside it. A single outlier has a large ball.

    Args:
        real, generated: features, one row a sample, with the same number of columns. Computed in float64, in blocks.
        k: which neighbour a ball reaches to, not counting the feature itself; in [1, N - 1] for the smaller set's N.

    Returns: `precision` and `recall` in [0, 1], `k`, and the sizes `n` (generated) and `real_n`.

    Raises: InputError for unequal columns, values that are not finite, and k out of range.

    Reference: Kynkaanniemi et al. 2019, Improved precision and recall metric, eq. 1 and 2 (k = 3).
    """
    found = neighbourhoods(real, generated, k, k)
    return {
        "precision": float(found.in_real.double().mean()),
        "recall": float(found.in_generated.double().mean()),
        "k": k,
        "n": len(generated),
        "real_n": len(real),
    }


def density_coverage(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = K_DENSITY
) -> dict[str, float | int]:
    """Density and coverage, over the balls of real features alone.

        density      mean over generated features of (how many real ones' balls it lies in) / k
        coverage     share of real features whose ball holds a generated one

    Density is about 1 for samples of the real law, above it where they crowd among real ones; one outlier's large ball
    counts as one of many, where precision counts it as all. Coverage of a set of the real law is about
    1 - 2^{-k} at equal n. Arguments and errors are those of `precision_recall`.

    Returns: `density` >= 0, `coverage` in [0, 1], `k`, `n` and `real_n`.

    Reference: Naeem et al. 2020, Reliable fidelity and diversity metrics, eq. 4 and 5 (k = 5).
    """
    found = neighbourhoods(real, generated, k, k)
    return {
        "density": float(found.balls.double().mean()) / k,
        "coverage": float(found.covered.double().mean()),
        "k": k,
        "n": len(generated),
        "real_n": len(real),
    }


def neighbourhoods(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = K, k_density: int = K_DENSITY
) -> Neighbourhoods:
    """All four metrics' balls in one pass over the pairs, in blocks: the memory is that of the features in float64.

    Matrix products give the squared distances to 2 (d + 8) u (|a|^2 + |b|^2), u half a unit of float64; what they leave
    in doubt, copies and the rims of balls, is worked out again from the differences. A feature is left out of its own
    neighbours by its row, so that copies count as neighbours.

    Raises: InputError as `precision_recall`.
    """
    for features in (real, generated):
        if features.ndim != 2 or features.shape[1] != real.shape[1]:
            raise InputError(
                f"features must be (N, d) and (M, d), not {tuple(real.shape)} and {tuple(generated.shape)}"
            )
        check_features(features)
    fewest = min(len(real), len(generated))
    for number in (k, k_density):
        if not 1 <= number < fewest:
            raise InputError(f"k must lie in [1, {fewest - 1}], below the number of features in each set, not {number}")
    centre = real.mean(0, dtype=torch.float64).cpu()  # distances do not see it; products of smaller numbers are closer
    real, generated = (features.detach().cpu().double() - centre for features in (real, generated))
    n, m = len(real), len(generated)
    real_radii, generated_radii = _radii(real, max(k, k_density)), _radii(generated, k)[:, k - 1]
    found = Neighbourhoods(
        in_real=torch.zeros(m, dtype=torch.bool),
        in_generated=torch.zeros(n, dtype=torch.bool),
        balls=torch.zeros(m, dtype=torch.int64),
        covered=torch.zeros(n, dtype=torch.bool),
    )
    for i in range(0, n, BLOCK):
        for j in range(0, m, BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            pairs = _Pairs(real[rows], generated[columns])
            dense = pairs.within(real_radii[rows, k_density - 1, None])
            found.in_real[columns] |= pairs.within(real_radii[rows, k - 1, None]).any(0)
            found.in_generated[rows] |= pairs.within(generated_radii[None, columns]).any(1)
            found.balls[columns] += dense.sum(0)
            found.covered[rows] |= dense.any(1)
    return found


def measure_precision_recall(samples: Seen, reference: Seen) -> list[Measurement]:
    """Precision and recall (k = 3), density and coverage (k = 5), in one pass.

    The errors take the balls as given: they are those of a share, or of a mean, over the features that are counted.
    """
    assert samples.features is not None and reference.features is not None
    found = neighbourhoods(reference.features, samples.features)
    m, n = len(samples.features), len(reference.features)

    def measured(metric: str, k: int, value: float, error: float, between: tuple[float, float] | None) -> Measurement:
        settings = {**samples.settings, "k": k}
        return Measurement(metric, value, error, "over samples, the balls as given", between, m, n, settings)

    def share(metric: str, k: int, counted: Bool[Tensor, " n"]) -> Measurement:
        value = float(counted.double().mean())
        error = math.sqrt(value * (1 - value) / len(counted))
        return measured(metric, k, value, error, wilson_interval(int(counted.sum()), len(counted)))

    balls = found.balls.double() / K_DENSITY
    density, error = float(balls.mean()), float(balls.std()) / math.sqrt(m)
    return [
        share("precision", K, found.in_real),
        share("recall", K, found.in_generated),
        measured("density", K_DENSITY, density, error, interval(density, error, low=0)),
        share("coverage", K_DENSITY, found.covered),
    ]


class _Pairs:
    """The squared distances between two blocks of features, and by how much each may be wrong."""

    def __init__(self, a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> None:
        self.a, self.b = a, b
        sums = _lengths(a)[:, None] + _lengths(b)
        self.squares = torch.addmm(sums, a, b.T, alpha=-2)
        self.doubt = sums.mul_(2 * (a.shape[1] + 8) * torch.finfo(torch.float64).eps)

    def within(self, radii: Float64[Tensor, "#n #m"]) -> Bool[Tensor, "n m"]:
        """Whether they are at most as large as the squared radii, of the rows or of the columns."""
        inside = self.squares <= radii
        rows, columns = ((self.squares - radii).abs_() <= self.doubt).nonzero(as_tuple=True)
        radii = radii.expand(inside.shape)
        for some in torch.arange(len(rows)).split(BLOCK):
            row, column = rows[some], columns[some]
            inside[row, column] = _squares(self.a[row], self.b[column]) <= SLACK * radii[row, column]
        return inside


def _lengths(a: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    norms: Tensor = torch.linalg.vector_norm(a, dim=1)
    return norms.square_()


def _squares(a: Float64[Tensor, "n d"], b: Float64[Tensor, "#n d"]) -> Float64[Tensor, " n"]:
    """The squared distance of each row of a to that of b, from the differences: 0 exactly for a copy."""
    return (a - b).square_().sum(1)


def _radii(features: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, "n k"]:
    """The squared distances from each feature to its k nearest others, rising.

    Candidates are those that may be nearest by the lowest that each product can mean; who is left out is no nearer
    than the last of them. Where that does not settle it, all the others are looked at.
    """
    n = len(features)
    bounds = torch.full((n, min(k + SPARE_CANDIDATES, n - 1)), math.inf, dtype=torch.float64)
    others = torch.zeros(bounds.shape, dtype=torch.int64)

    def offer(first: int, lowest: Float64[Tensor, "rows columns"], start: int) -> None:
        rows = slice(first, first + len(lowest))
        both = torch.cat([bounds[rows], lowest], 1)
        bounds[rows], place = both.topk(bounds.shape[1], largest=False)
        named = torch.arange(start, start + lowest.shape[1]).expand(lowest.shape)
        others[rows] = torch.cat([others[rows], named], 1).gather(1, place)

    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            pairs = _Pairs(features[i : i + BLOCK], features[j : j + BLOCK])
            lowest = pairs.squares.sub_(pairs.doubt)
            if i == j:
                lowest.fill_diagonal_(math.inf)
            else:
                offer(j, lowest.T.contiguous(), i)
            offer(i, lowest, j)
    blocks = zip(features.split(BLOCK), others.split(BLOCK), strict=True)
    found = [torch.stack([_squares(rows, features[row]) for row in near.unbind(1)], 1) for rows, near in blocks]
    exact = torch.cat(found).sort(1).values[:, :k]
    if bounds.shape[1] < n - 1:
        for row in (bounds.amax(1).clamp(min=0) < exact[:, -1]).nonzero().flatten().tolist():
            squares = torch.cat([_squares(block, features[row : row + 1]) for block in features.split(BLOCK)])
            squares[row] = math.inf
            exact[row] = squares.topk(k, largest=False).values.sort().values
    return exact
