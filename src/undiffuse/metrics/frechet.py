"""How far apart two sets of features lie, were both Gaussian."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.measurement import Measurement, interval
from undiffuse.metrics.moments import Moments, check_features
from undiffuse.metrics.seen import Seen

SUPPORT = 1e-7  # of the largest singular value: below, float64 moments know no direction
ROWS = 2048  # features whose influence is worked out at once
COLUMNS = 512  # of a triangular product worked out at once


def frechet_distance(a: Float[Tensor, "n d"] | Moments, b: Float[Tensor, "m d"] | Moments) -> float:
    """The Frechet (2-Wasserstein, squared) distance between the Gaussians fitted to two sets of features.

        ||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2})

    With S = R^T R for both, the trace of the root is the sum of the singular values of R_a R_b^T. Of features, R is the
    centred features over sqrt(n - 1), or the R of their Q R where that is smaller: symmetric, sound for singular
    covariances, and no root of a rounding error is taken. Of moments, the squares of the singular values are the
    eigenvalues of L_a^T S_b L_a, S_a = L_a L_a^T: faster, and as exact but for what lies 1e-8 of the largest below it.

    The name FID belongs to Inception-v3 features only; elsewhere say "Frechet distance over <features>". The estimate
    falls with the number of samples: compare at equal n, with a real-against-real value beside it.

    Args:
        a, b: features, one row a sample, at least 2 rows each and the same number of columns; or their moments.
            Computed in float64.

    Returns: the distance, >= 0, in squared units of the features.

    Raises: InputError for fewer than 2 rows, unequal columns, or values that are not finite.

    Reference: Dowson & Landau 1982, eq. 4; Heusel et al. 2017, eq. 6.
    """
    sizes = [len(side.mean) if isinstance(side, Moments) else side.shape[-1] if side.ndim else 0 for side in (a, b)]
    for side in (a, b):
        if isinstance(side, Tensor):
            check_features(side, at_least=2)
    if sizes[0] != sizes[1]:
        raise InputError(f"both sets need the same number of features, not {sizes[0]} and {sizes[1]}")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        (mean_a, root_a), (mean_b, root_b) = _mean_and_root(a), _mean_and_root(b)
        trace_of_root = torch.linalg.svdvals(root_a @ root_b.T).sum()
        traces = root_a.square().sum() + root_b.square().sum()
        return max(0.0, float((mean_a - mean_b).square().sum() + traces - 2 * trace_of_root))
    a, b = (side if isinstance(side, Moments) else Moments.of(side) for side in (a, b))
    covariances = a.covariance, b.covariance
    squares = torch.linalg.eigvalsh(_product(*covariances)[1])
    return _distance((a.mean, b.mean), covariances, squares)


def measure_frechet_distance(samples: Seen, reference: Seen) -> list[Measurement]:
    """The Frechet distance with its standard error, "fid" where the features are those of the FID papers.

    What one sample adds to the distance is, to first order, its influence

        h(x) = 2 (mu - mu_r).(x - mu) + (x - mu)^T (I - A) (x - mu) - its mean,
        A = L_r (L_r^T S L_r)^{-1/2} L_r^T,        S_r = L_r L_r^T

    (A is the map that carries the samples' Gaussian to the real one's), likewise with the sides exchanged, and

        error^2 = mean h^2 / n + mean h_r^2 / m

    where both sides' features were kept. A side that kept moments alone counts as fixed; without the samples' own
    features there is no error. The error says how the estimate would scatter, not how far it lies above what infinitely
    many samples would give: of order d / n, about the same for all sets of one n. Where both sides are draws of one
    law, and the distance is that bias alone, the error comes out about 1.4 times too large.

    Raises: InputError for fewer than 2 samples and for features that differ in name, key or number.

    Reference: Efron & Stein 1981 and Jaeckel 1972 (the infinitesimal jackknife); Gelbrich 1990 (the map A).
    """
    metric = "fid" if samples.is_inception else "frechet-distance"
    a, b = samples.moments, reference.moments
    if samples.features is None:
        value, error, error_by = frechet_distance(a, b), None, "none: the samples' features were not kept"
    else:
        fit = Fit(a, b)
        value, variance = fit.distance, float(fit.of_samples(samples.features).square().mean()) / len(samples.features)
        error_by = "infinitesimal jackknife, the reference held fixed"
        if reference.features is not None:
            variance += float(fit.of_reference(reference.features).square().mean()) / len(reference.features)
            error_by = "infinitesimal jackknife"
        error = math.sqrt(variance)
    between = interval(value, error, low=0)
    return [Measurement(metric, value, error, error_by, between, samples.n or 0, reference.n, samples.settings)]


class Fit:
    """Both Gaussians, and how their distance changes with a sample of either.

    With the eigenvalues s^2 and vectors U of L_r^T S L_r, A = L_r U s^{-1} U^T L_r^T, and the map the other way is
    S L_r U s^{-3} U^T L_r^T S: one decomposition serves both sides.
    """

    def __init__(self, samples: Moments, reference: Moments) -> None:
        self.samples, self.reference = samples, reference
        covariances = reference.covariance, samples.covariance
        root, product = _product(*covariances)
        squares, vectors = torch.linalg.eigh(product)
        self.distance = _distance((samples.mean, reference.mean), covariances, squares)
        singular = squares.clamp(min=0).sqrt()
        known = singular > SUPPORT * singular[-1]
        self.to_reference = root @ vectors[:, known] / singular[known].sqrt()
        self.to_samples = covariances[1] @ (self.to_reference / singular[known])

    def of_samples(self, features: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The influence of each sample."""
        return self._influence(features, self.samples.mean, self.reference.mean, self.to_reference)

    def of_reference(self, features: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The influence of each real one."""
        return self._influence(features, self.reference.mean, self.samples.mean, self.to_samples)

    @staticmethod
    def _influence(
        features: Float[Tensor, "n d"],
        mean: Float64[Tensor, " d"],
        other: Float64[Tensor, " d"],
        factor: Float64[Tensor, "d r"],
    ) -> Float64[Tensor, " n"]:
        found = []
        for rows in features.split(ROWS):
            x = rows.cpu().double() - mean
            found.append(2 * x @ (mean - other) + x.square().sum(1) - (x @ factor).square().sum(1))
        influence = torch.cat(found)
        return influence - influence.mean()


def _distance(
    means: tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]],
    covariances: tuple[Float64[Tensor, "d d"], Float64[Tensor, "d d"]],
    squares: Float64[Tensor, " d"],
) -> float:
    traces = covariances[0].trace() + covariances[1].trace()
    return max(0.0, float((means[0] - means[1]).square().sum() + traces - 2 * squares.clamp(min=0).sqrt().sum()))


def _mean_and_root(features: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "r d"]]:
    """The mean and an R with R^T R the unbiased covariance, r = min(n, d); on the host, for float64."""
    features = features.detach().cpu().double()
    mean, (n, d) = features.mean(0), features.shape
    centred = (features - mean) / (n - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R if n > d else centred


def _product(
    a: Float64[Tensor, "d d"], b: Float64[Tensor, "d d"]
) -> tuple[Float64[Tensor, "d d"], Float64[Tensor, "d d"]]:
    """An L with L L^T = a, Cholesky's or, where a is singular, that of the eigenvectors; and L^T b L."""
    root, failed = torch.linalg.cholesky_ex(a)
    if failed:
        values, vectors = torch.linalg.eigh(a)
        root = vectors * values.clamp(min=0).sqrt()
        return root, root.T @ b @ root
    product = torch.zeros_like(b)
    for j in range(0, len(b), COLUMNS):  # above the diagonal L is 0, and eigh reads the lower triangle alone
        columns = b[:, j:] @ root[j:, j : j + COLUMNS]
        for i in range(j, len(b), COLUMNS):
            product[i : i + COLUMNS, j : j + COLUMNS] = root[i:, i : i + COLUMNS].T @ columns[i:]
    return root, product
