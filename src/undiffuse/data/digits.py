"""The handwritten digits that come with scikit-learn: real data with no download."""

import numpy as np
import torch

from undiffuse.data.dataset import Dataset, Split, split


def load() -> Split:
    """1,797 grey pictures of 8 x 8 with labels 0 to 9; the same 359 of them are always held out.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), test part.
    """
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    labels = torch.from_numpy(digits.target.astype(np.int64))
    classes = tuple(str(name) for name in digits.target_names)
    return split(Dataset("digits", torch.from_numpy(images)[:, None], {"label": labels}, classes), held_out=0.2)
