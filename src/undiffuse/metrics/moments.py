"""Mean and covariance of a stream of features: of any number of samples, in the memory of one matrix."""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.files import atomic_path

COLUMNS, ROWS = 512, 1024  # worked out at a time: of the lower triangle, and of features


@dataclass
class Moments:
    """How many features there were, their mean, and the sum of the outer products of what they differ from it by.

        scatter = sum_i (x_i - mean) (x_i - mean)^T,        covariance = scatter / (n - 1)

    Two halves of a set are put together by the pairwise update, which loses no digits far from the origin:

        mean = mean_a + delta n_b / n,    scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n,
        delta = mean_b - mean_a

    so the result does not depend on how the set was cut, but for rounding (float64, on the host).

    Args:
        n: how many; None where a file did not say: nothing can be added then.
        mean: (d,).
        lower: the scatter's lower triangle, or the covariance's where n is None, in a matrix (d, d); what stands above
            the diagonal has no meaning.

    Reference: Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm, eq. 2.1.
    """

    n: int | None
    mean: Float64[Tensor, " d"]
    lower: Float64[Tensor, "d d"]

    @classmethod
    def empty(cls, d: int) -> Self:
        """Of no features yet, each of d numbers."""
        return cls(0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Self:
        """Of one set of features. Raises: InputError unless they are (N, d) and finite."""
        check_features(features)
        moments = cls.empty(features.shape[1])
        moments.update(features)
        return moments

    def copy(self) -> "Moments":
        """The same, to be added to without a change to these."""
        return Moments(self.n, self.mean.clone(), self.lower.clone())

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Take in more features.

        Raises: InputError unless they are (N, d) with the d of the others, and finite; and where n is not known.
        """
        check_features(features)
        n = self._count(features.shape[1])
        for rows in features.detach().cpu().split(ROWS) if len(features) else ():
            mean = rows.mean(0, dtype=torch.float64)
            x = torch.empty(len(rows) + 1, len(mean), dtype=torch.float64)
            torch.sub(rows, mean, out=x[:-1])
            x[-1] = self._shift(n, len(rows), mean)
            self._add(x)
            n += len(rows)

    def merge(self, other: "Moments") -> None:
        """Take in what another stream saw, as if it had gone through this one.

        Raises: InputError for another number of columns, or where either does not know its n.
        """
        n, more = self._count(len(other.mean)), other._count(len(self.mean))
        if more:
            self.lower += other.lower
            self._add(self._shift(n, more, other.mean)[None])

    @property
    def scatter(self) -> Float64[Tensor, "d d"]:
        """The whole matrix. Raises: InputError where n is not known."""
        self._count(len(self.mean))
        return self._mirrored(1)

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance. Raises: InputError for fewer than 2 samples."""
        if self.n is not None and self.n < 2:
            raise InputError(f"a covariance needs 2 samples or more, not {self.n}")
        return self._mirrored(1 if self.n is None else self.n - 1)

    def save(self, path: str | Path, **more: np.ndarray) -> None:
        """Write an .npz of `mu` and `sigma`, as the field shares them, `n` where it is known, and more arrays.

        Raises: InputError for another ending, for fewer than 2 samples, and when the file cannot be written.
        """
        if Path(path).suffix != ".npz":
            raise InputError(f"moments are written as .npz, not as {path}")
        known = {} if self.n is None else {"n": np.array(self.n)}
        arrays = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy(), **known, **more}
        with atomic_path(Path(path)) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read such an .npz; one without `n` gives moments whose n is None.

        Raises: InputError when the file is missing or damaged, or holds no mean (d,) and covariance (d, d), finite and
            symmetric with no negative variance.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = (torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma"))
                n = int(file["n"]) if "n" in file else None
        except OSError as error:
            raise InputError(f"cannot read the moments {path}: {error.strerror or error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is no .npz with mu (d,) and sigma (d, d): {error}") from error
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not len(mean):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise InputError(f"{path} must hold mu (d,) and sigma (d, d), not {shapes}")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise InputError(f"{path} holds moments that are NaN or infinite")
        tolerance = 1e-6 * float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > tolerance or float(covariance.diagonal().min()) < 0:
            raise InputError(f"sigma in {path} is not symmetric with variances >= 0, so it is no covariance")
        if n is not None and n < 2:
            raise InputError(f"{path} says it is of {n} samples; a covariance needs 2 or more")
        covariance = (covariance + covariance.T) / 2
        return cls(n, mean, covariance if n is None else covariance * (n - 1))

    def _count(self, d: int) -> int:
        if d != len(self.mean):
            raise InputError(f"both sets need the same number of features, not {len(self.mean)} and {d}")
        if self.n is None:
            raise InputError("these moments do not say of how many samples they are, so they cannot be added to others")
        return self.n

    def _add(self, x: Float64[Tensor, "n d"]) -> None:
        for i in range(0, x.shape[1], COLUMNS):
            self.lower[i:, i : i + COLUMNS].addmm_(x[:, i:].T, x[:, i : i + COLUMNS])

    def _mirrored(self, divisor: int) -> Float64[Tensor, "d d"]:
        whole = self.lower / divisor
        for i in range(0, len(whole), COLUMNS):
            rows, rest = slice(i, i + COLUMNS), slice(i + COLUMNS, None)
            whole[rows, rest] = whole[rest, rows].T
            whole[rows, rows] = whole[rows, rows].tril() + whole[rows, rows].tril(-1).T
        return whole

    def _shift(self, n: int, more: int, mean: Float64[Tensor, " d"]) -> Float64[Tensor, " d"]:
        """Move to the mean of both; what that adds to the scatter is the outer product of the row that comes back."""
        delta = mean - self.mean
        self.mean = self.mean + delta * (more / (n + more))
        self.n = n + more
        return delta * math.sqrt(n * more / (n + more))


def check_features(features: Tensor, at_least: int = 0) -> None:
    """Raises: InputError unless `features` are floating (N, d), N >= `at_least`, d >= 1, and finite."""
    if features.ndim != 2 or len(features) < at_least or not features.shape[1] or not features.is_floating_point():
        least = f" with N >= {at_least}" if at_least else ""
        raise InputError(f"features must be floating (N, d){least}, not {features.dtype} {tuple(features.shape)}")
    if not features.sum(dtype=torch.float64).isfinite():  # one pass and no copy, where isfinite of all needs both
        raise InputError("features must be finite; some are NaN or infinite")
