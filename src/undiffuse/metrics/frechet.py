"""How far apart two sets of features lie, were both Gaussian."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undiffuse.errors import InputError


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The Frechet (2-Wasserstein, squared) distance between the Gaussians fitted to two sets of features.

        ||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2})

    With the centred features over sqrt(n - 1) factored as Q R, S = R^T R, and the trace of the root is the sum of the
    singular values of R_a R_b^T: symmetric, sound for singular covariances, and no root of a rounding error is taken.

    The name FID belongs to Inception-v3 features only; elsewhere say "Frechet distance over <features>". The estimate
    falls with the number of samples: compare at equal n, with a real-against-real value beside it.

    Args:
        a, b: features, one row a sample; at least 2 rows each and the same number of columns. Computed in float64.

    Returns: the distance, >= 0, in squared units of the features.

    Raises: InputError for fewer than 2 rows, unequal columns, or values that are not finite.

    Reference: Dowson & Landau 1982, eq. 4; Heusel et al. 2017, eq. 6.
    """
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"features must be (N, d) with N >= 2, not {tuple(features.shape)}")
        if not features.isfinite().all():
            raise InputError("features must be finite; some are NaN or infinite")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"both sets need the same number of features, not {a.shape[1]} and {b.shape[1]}")
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    trace_of_root = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * trace_of_root
    return max(0.0, float(distance))


def _mean_and_root(features: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "r d"]]:
    """The mean and an R with R^T R the unbiased covariance, r = min(n, d); on the host, for float64."""
    features = features.detach().cpu().double()
    mean = features.mean(0)
    return mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5
