"""The pictures of a report that show samples and data: grids, the way from noise, neighbours, spectra, histograms."""

import itertools
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from undiffuse import metrics, plots
from undiffuse.data import Split
from undiffuse.examples import conditions_by_class, conditions_in_turn
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline

NEIGHBOURS = 8  # samples that are shown above their nearest training images


def class_grid(model: Pipeline, split: Split, classes: int) -> np.ndarray:
    """10 x 10 samples, one row per class (the first ten)."""
    rows = min(classes, 10) or 10
    condition = conditions_by_class(model, split, rows, 10)
    return image.grid(model.sample(10 * rows, seed=0, **condition), columns=10, padding=1)


def trajectory(model: Pipeline, split: Split) -> tuple[np.ndarray, list[float]]:
    """Four samples on their way from noise to data, one row each, and the times of the columns."""
    condition = conditions_in_turn(model, split, 4)
    times = model.times()
    shown = [round(i) for i in np.linspace(0, len(times) - 1, min(11, len(times)))]
    states = list(itertools.islice(model.walk(range(4), condition=condition), len(times)))
    columns = []
    for i in shown:
        t = times[i]
        scale = torch.hypot(model.denoiser.schedule.alpha(t), model.denoiser.schedule.sigma(t))
        columns.append(image.to_array(model.codec.decode(states[i] / float(scale))))
    rows = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])
    return image.grid(rows, columns=len(shown), padding=2), [round(float(times[i]), 4) for i in shown]


def neighbours(images: Tensor, train: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
    """Eight samples, each above its three nearest training images."""
    distances, indices = metrics.nearest(images[:NEIGHBOURS], train, k=min(3, len(train)))
    rows = [images[:NEIGHBOURS], *(train[column] for column in indices.T)]
    picture = image.grid(image.to_array(torch.cat(rows)), columns=min(NEIGHBOURS, len(images)), padding=2)
    return picture, {
        "n": min(NEIGHBOURS, len(images)),
        "train_n": len(train),
        "distance": "root-mean-square difference of pixels, 0 to 255",
        "nearest": [round(float(d), 2) for d in distances[:, 0]],
    }


def spectra(named: dict[str, Tensor]) -> tuple[Figure, dict[str, Any]]:
    """Radial power of sets of uint8 pictures, by name."""
    found = {name: metrics.radial_power(images) for name, images in named.items()}
    lists = {name: (radii.tolist(), power.tolist()) for name, (radii, power) in found.items()}
    radii = next(iter(lists.values()))[0]
    power = {name: [float(f"{value:.6g}") for value in values] for name, (_, values) in lists.items()}
    return plots.spectra(lists), {"cycles": radii, "power": power, "n": {name: len(v) for name, v in named.items()}}


def histograms(named: dict[str, Tensor]) -> tuple[Figure, dict[str, Any]]:
    """How often each of the 256 values occurs in sets of uint8 pictures, by name."""
    counts = {name: torch.bincount(images.flatten().long(), minlength=256).tolist() for name, images in named.items()}
    return plots.histograms(counts), {"counts": counts, "n": {name: len(images) for name, images in named.items()}}
