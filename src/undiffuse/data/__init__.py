"""Where samples come from, and in which order and shape training sees them."""

from collections.abc import Callable

from undiffuse.data import arrays, digits, folder
from undiffuse.data.augment import Augment, Flip, Geometric, RandomCrop
from undiffuse.data.dataset import Dataset, Split, split
from undiffuse.data.order import Order

SOURCES: dict[str, Callable[..., Split]] = {
    "digits": digits.load,
    "arrays": arrays.load,
    "folder": folder.load,
}

__all__ = ["SOURCES", "Augment", "Dataset", "Flip", "Geometric", "Order", "RandomCrop", "Split", "split"]
