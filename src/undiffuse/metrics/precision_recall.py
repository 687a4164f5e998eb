"""Precision and recall: are samples like real ones, and are all real ones like some sample?"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from undiffuse.errors import InputError

BLOCK = 2048  # rows compared at once: 32 MB of distances


def precision_recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = 3) -> dict[str, float | int]:
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
    for features in (real, generated):
        if features.ndim != 2 or features.shape[1] != real.shape[1]:
            raise InputError(
                f"features must be (N, d) and (M, d), not {tuple(real.shape)} and {tuple(generated.shape)}"
            )
        if not features.isfinite().all():
            raise InputError("features must be finite; some are NaN or infinite")
    fewest = min(len(real), len(generated))
    if not 1 <= k < fewest:
        raise InputError(f"k must lie in [1, {fewest - 1}], below the number of features in each set, not {k}")
    real, generated = real.detach().double(), generated.detach().double()
    return {
        "precision": float(_inside(generated, real, k).double().mean()),
        "recall": float(_inside(real, generated, k).double().mean()),
        "k": k,
        "n": len(generated),
        "real_n": len(real),
    }


def _distances(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    # by differences: products would lose the digits of close pairs, and a feature's distance to itself is 0 exactly
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(features: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The distance from each feature to its k-th nearest other."""
    radii = []
    for rows in features.split(BLOCK):
        nearest = features.new_empty(len(rows), 0)
        for others in features.split(BLOCK):
            found = torch.cat([nearest, _distances(rows, others)], 1)
            nearest = found.topk(min(k + 1, found.shape[1]), largest=False).values  # one more: itself, at 0
        radii.append(nearest[:, k])
    return torch.cat(radii)


def _inside(features: Float64[Tensor, "n d"], of: Float64[Tensor, "m d"], k: int) -> Bool[Tensor, " n"]:
    """Which features lie in the ball of one of the others at least."""
    balls = list(zip(of.split(BLOCK), _radii(of, k).split(BLOCK), strict=True))
    return torch.cat(
        [
            torch.stack([(_distances(rows, centres) <= radii).any(1) for centres, radii in balls]).any(0)
            for rows in features.split(BLOCK)
        ]
    )
