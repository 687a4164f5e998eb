"""The handwritten digits that come with scikit-learn: real data with no download."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch

from undiffuse.data.columns import Conditions, wanted
from undiffuse.data.dataset import Dataset, Split, split
from undiffuse.errors import InputError


def load(conditions: Conditions = MappingProxyType({"label": "label"})) -> Split:
    """1,797 grey pictures of 8 x 8; the same 359 of them are always held out.

    conditions: of the kind label, whatever their names: the digit, 0 to 9.

    Raises: InputError for conditions of another kind.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), test part.
    """
    asked = wanted(conditions)
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    labels = torch.from_numpy(digits.target.astype(np.int64))
    classes = tuple(str(name) for name in digits.target_names)
    for name, arguments in asked.items():
        if arguments["name"] != "label":
            raise InputError(f"the digits have labels alone: the condition {name!r} cannot be a {arguments['name']}")
    whole = split(Dataset("digits", torch.from_numpy(images)[:, None], {"label": labels}, {"label": classes}), 0.2)
    return Split(*(_renamed(part, list(asked)) for part in (whole.train, whole.held_out)))


def _renamed(dataset: Dataset, names: list[str]) -> Dataset:
    """The data set with its label under these names."""
    labels, classes = dataset.conditions["label"], dataset.classes["label"]
    return replace(dataset, conditions=dict.fromkeys(names, labels), classes=dict.fromkeys(names, classes))
