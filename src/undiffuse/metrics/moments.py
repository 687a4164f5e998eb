"""Mean and covariance of a stream of features: of any number of samples, in the memory of one matrix."""

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


@dataclass
class Moments:
    """How many features there were, their mean, and the sum of the outer products of what they differ from it by.

        scatter = sum_i (x_i - mean) (x_i - mean)^T,        covariance = scatter / (n - 1)

    Two halves of a set are put together by the pairwise update, which loses no digits far from the origin:

        mean = mean_a + delta n_b / n,    scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n,
        delta = mean_b - mean_a

    so the result does not depend on how the set was cut, but for rounding (float64, on the host).

    Args:
        n: how many; None where a file did not say, and `scatter` is then the covariance itself.
        mean: (d,).
        scatter: (d, d), symmetric.

    Reference: Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm, eq. 2.1.
    """

    n: int | None
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]

    @classmethod
    def empty(cls, d: int) -> Self:
        """Of no features yet, each of d numbers."""
        return cls(0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Self:
        """Of one set of features. Raises: InputError unless they are (N, d) and finite."""
        moments = cls.empty(features.shape[-1] if features.ndim else 0)
        moments.update(features)
        return moments

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Take in more features.

        Raises: InputError unless they are (N, d) with the d of the others, and finite.
        """
        check_features(features)
        self._check_columns(features.shape[1])
        if not len(features):
            return
        x = features.detach().cpu().double()
        mean = x.mean(0)
        x = x - mean
        self._take(len(x), mean, x.T @ x)

    def merge(self, other: "Moments") -> None:
        """Take in what another stream saw, as if it had gone through this one.

        Raises: InputError for another number of columns, or where either does not know its n.
        """
        self._check_columns(len(other.mean))
        if other.n is None:
            raise InputError("these moments do not say of how many samples they are, so they cannot be merged")
        if other.n:
            self._take(other.n, other.mean, other.scatter)

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance. Raises: InputError for fewer than 2 samples."""
        if self.n is None:
            return self.scatter
        if self.n < 2:
            raise InputError(f"a covariance needs 2 samples or more, not {self.n}")
        return self.scatter / (self.n - 1)

    def save(self, path: str | Path) -> None:
        """Write an .npz of `mu` and `sigma`, as the field shares them, and `n` where it is known.

        Raises: InputError for fewer than 2 samples, and when the file cannot be written.
        """
        known = {} if self.n is None else {"n": np.array(self.n)}
        with atomic_path(Path(path).with_suffix(".npz")) as temporary:
            np.savez(temporary, mu=self.mean.numpy(), sigma=self.covariance.numpy(), allow_pickle=False, **known)

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

    def _take(self, n: int, mean: Float64[Tensor, " d"], scatter: Float64[Tensor, "d d"]) -> None:
        if self.n is None:
            raise InputError("these moments do not say of how many samples they are, so no more can be taken in")
        total = self.n + n
        delta = mean - self.mean
        self.mean = self.mean + delta * (n / total)
        self.scatter = (self.scatter + scatter).addr_(delta, delta, alpha=self.n * n / total)
        self.n = total

    def _check_columns(self, d: int) -> None:
        if d != len(self.mean):
            raise InputError(f"both sets need the same number of features, not {len(self.mean)} and {d}")


def check_features(features: Tensor, at_least: int = 0) -> None:
    """Raises: InputError unless `features` are floating (N, d), N >= `at_least`, d >= 1, and finite."""
    if features.ndim != 2 or len(features) < at_least or not features.shape[1] or not features.is_floating_point():
        least = f" with N >= {at_least}" if at_least else ""
        raise InputError(f"features must be floating (N, d){least}, not {features.dtype} {tuple(features.shape)}")
    if not features.isfinite().all():
        raise InputError("features must be finite; some are NaN or infinite")
