"""Samples of a data set with their conditions, as a model sees them: for validation, previews and evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from undiffuse.data import Dataset, Split
from undiffuse.data.dataset import turns
from undiffuse.pipeline import Pipeline


def centred(dataset: Dataset, shape: Sequence[int], rows: Tensor | slice) -> Tensor:
    """Some of a data set's samples, centre-cropped to the model's shape: uint8 (N, C, H, W)."""
    top, left = ((have - want) // 2 for have, want in zip(dataset.shape[1:], shape[1:], strict=True))
    return dataset.samples[rows][:, :, top : top + shape[1], left : left + shape[2]]


def leading(dataset: Dataset, count: int) -> Dataset:
    """The first samples of a data set, in memory: decoded here, and not each time they are looked at."""
    conditions = {name: values[:count] for name, values in dataset.conditions.items()}
    return replace(dataset, samples=dataset.samples[:count], conditions=conditions)


def drawn(n: int, count: int) -> Int64[Tensor, " count"]:
    """`count` of n rows, drawn at random, but always the same, and in order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values


def conditions_of(dataset: Dataset, rows: Tensor | slice, model: Pipeline) -> dict[str, Tensor]:
    """The raw conditions of some samples, which stand as `centred` puts them: read, cut alike, or made from them."""
    shape, found = model.shape, {}
    for name, part in model.parts.items():
        if part.derived:
            found[name] = part.derive(centred(dataset, shape, rows))
            continue
        values = dataset.conditions[name][rows]
        if part.shares_space and values.shape[-2:] == dataset.shape[1:]:
            top, left = ((have - want) // 2 for have, want in zip(dataset.shape[1:], shape[1:], strict=True))
            values = values[..., top : top + shape[1], left : left + shape[2]]
        found[name] = values
    return found


def balanced(held_out: Dataset, n: int) -> Tensor:
    """n rows of a data set, always the same, its classes in turn; from the start again where there are too few.

    Shuffled, because the beginning of a data set is often not like the rest (of MNIST's test split it is the cleaner).
    """
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    labels = held_out.label[order]
    return order[torch.argsort(turns(labels) * (int(labels.max()) + 1) + labels)][torch.arange(n) % len(order)]


def conditions_in_turn(model: Pipeline, split: Split, n: int) -> dict[str, Any]:
    """Conditions for n samples: every class in turn where a label is all there is, else those of held-out samples."""
    if list(model.parts) == [model.label]:
        present = split.train.label.unique()  # not a class that has a number and no sample
        return {str(model.label): present[torch.arange(n) % len(present)]}
    return conditions_of(split.held_out, balanced(split.held_out, n), model)


def conditions_by_class(model: Pipeline, split: Split, classes: int, each: int) -> dict[str, Any]:
    """Conditions for each of the first classes, so many in a block; without classes, those of held-out samples."""
    present = split.train.label.unique()
    shown = present[torch.arange(classes) % len(present)]
    if list(model.parts) == [model.label]:
        return {str(model.label): shown.repeat_interleave(each)}
    if not model.classes:
        return conditions_of(split.held_out, balanced(split.held_out, classes * each), model)
    # of training samples where a class has none held out
    dataset = split.held_out if bool(torch.isin(shown, split.held_out.label).all()) else split.train
    of_class = [(dataset.label == label).nonzero()[:, 0] for label in shown]
    return conditions_of(dataset, torch.cat([found[torch.arange(each) % len(found)] for found in of_class]), model)
