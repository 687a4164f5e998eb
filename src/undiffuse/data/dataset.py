"""Samples, in memory or in files, and the one way they are divided into training and held-out ones."""

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from undiffuse.data.pictures import Pictures
from undiffuse.errors import InputError

Samples = Tensor | Pictures  # uint8 (N, C, H, W); a slice or rows of either are a tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples of one shape with their conditions.

    name: what it is called in recipes and reports, for example "digits".
    samples: uint8, 0 to 255, in memory or decoded where they are asked for.
    conditions: by name, a tensor with a row per sample, as `undiffuse.data.columns` makes them; may be empty.
    classes: the names of the classes of each condition that has some.
    skipped: files that could not be read and were left out.

    Raises: InputError when samples are not uint8 (N, C, H, W) or a condition has another length.
    """

    name: str
    samples: Shaped[Tensor, "n channels height width"] | Pictures
    conditions: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.samples.shape)
        if self.samples.dtype != torch.uint8 or len(shape) != 4:
            raise InputError(f"samples are {self.samples.dtype} {shape}: uint8 (N, C, H, W) is needed")
        for name, values in self.conditions.items():
            if len(values) != len(self):
                raise InputError(f"condition {name!r} has {len(values)} rows: {len(self)} samples need {len(self)}")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        channels, height, width = self.samples.shape[1:]
        return channels, height, width

    @property
    def in_memory(self) -> bool:
        """Whether the samples are in memory, and not decoded from files."""
        return isinstance(self.samples, Tensor)

    @property
    def label(self) -> Tensor:
        """The class of each sample, int64 (N,), by the first condition that is a label; without one, 0 for all."""
        labels = (self.conditions[name] for name in self.classes if self.conditions[name].ndim == 1)
        return next(labels, torch.zeros(len(self), dtype=torch.int64))

    def subset(self, indices: Int64[Tensor, " count"]) -> "Dataset":
        """The samples at `indices`, in that order, copied, but not decoded."""
        conditions = {name: values[indices] for name, values in self.conditions.items()}
        return replace(self, samples=chosen(self.samples, indices), conditions=conditions)


def chosen(samples: Samples, indices: Int64[Tensor, " count"]) -> Samples:
    """The samples at `indices`, where they are: in memory, or in files."""
    return samples.subset(indices) if isinstance(samples, Pictures) else samples[indices]


@dataclass(frozen=True, eq=False)
class Split:
    """What a model is trained on, and what it is judged on."""

    train: Dataset
    held_out: Dataset


def turns(labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """For each label, how many of the same came before it: sorted by that, the classes come in turn."""
    before = torch.zeros_like(labels)
    for label in labels.unique():
        mask = labels == label
        before[mask] = torch.arange(int(mask.sum()))
    return before


def split(dataset: Dataset, held_out: float, seed: int = 0) -> Split:
    """Hold out a fraction of the samples, the same ones for the same seed, and of every class alike.

    Classes of one sample stay in training. Of every other, with n samples, `held_out * n` are held out, rounded up or
    down so that the total comes nearest to the fraction, but one sample at least in all and n - 1 at most of a class.
    Both parts keep the order of `dataset`.

    held_out: a fraction between 0 and 1, both excluded.

    Raises: InputError for another fraction, or when no class has a sample to spare.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}: a fraction between 0 and 1 is allowed, for example 0.1")
    n = len(dataset)
    labels = dataset.label
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].sort(stable=True).indices]
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    shared = counts * (counts > 1)
    if not shared.any():
        raise InputError(f"{dataset.name}: no two of {n} samples are of one class, so none can be held out")
    # Rounding the running total, not each class, keeps the fraction right where every class is small.
    fraction = max(held_out, 1 / int(shared.sum()))
    quota = (fraction * shared.cumsum(0).double() + 0.5).long().diff(prepend=torch.zeros(1, dtype=torch.int64))
    quota = quota.minimum(counts - 1)
    rank = torch.arange(n) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    chosen = order[rank < quota.repeat_interleave(counts)]
    outside = torch.zeros(n, dtype=torch.bool)
    outside[chosen] = True
    return Split(dataset.subset((~outside).nonzero()[:, 0]), dataset.subset(outside.nonzero()[:, 0]))


def missing(path: Path) -> InputError:
    """An `InputError` for a path where nothing is, with the nearest name beside it if there is one."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of what is to be read"
    return InputError(f"{path} does not exist: {hint}")
