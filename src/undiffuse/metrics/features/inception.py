"""The Inception-v3 of the FID papers."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.errors import InputError, unknown
from undiffuse.metrics.features.base import Features, Images, fingerprint, in_colour
from undiffuse.metrics.features.pretrained import Published
from undiffuse.metrics.features.resize import RESIZES, resize

WEIGHTS = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
SIZE, DIM = 299, 2048


class Inception(Features):
    """The 2,048 pooled features and 1,008 unbiased logits that FID, KID, Inception Score and their kin are made of.

    The network is torch-fidelity's, a port of the TensorFlow graph of 2015-12-05, in the order in which it holds its
    layers. Pixels go in as (x - 128) / 128. The logits are those without the bias, as in the papers' code.

    Args:
        resize: "clean", as in clean-fid, or "legacy", as in the first FID code and torch-fidelity. Values under one
            do not compare with values under the other.
        weights: the file of weights; by default it is looked for, and downloaded.

    Raises: InputError without torch-fidelity (`undiffuse[metrics]`), and as `Published.find`.

    Reference: Szegedy et al. 2016; Heusel et al. 2017, section 5; Salimans et al. 2016, section 4.
    """

    is_inception = True
    dim = DIM
    batch_size = 32

    def __init__(
        self, resize: str = "clean", weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        if resize not in RESIZES:
            raise unknown("resizing", resize, RESIZES)
        self.resizing, self.device = resize, device
        self.name = "Inception-v3 features" + ("" if resize == "clean" else f" ({resize} resizing)")
        self.key = fingerprint("inception", WEIGHTS.sha256, resize)
        network = _network(weights).to(device)
        self.scores: nn.Linear = network.fc
        self.body = nn.Sequential(*(layer for layer in network.children() if layer is not network.fc))

    def embed(self, images: Images) -> tuple[Tensor, Tensor]:
        x = (resize(in_colour(images), SIZE, self.resizing) - 128) / 128
        features = self.body(x).flatten(1)
        return features, features @ self.scores.weight.T


def _network(path: str | Path | None) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError(
            f"Inception features need torch-fidelity and torchvision ({error}): pip install 'undiffuse[metrics]'"
        ) from error
    # The constructor unpickles what it is given, so it is given tensors that were already read without unpickling.
    own = io.BytesIO()
    torch.save(WEIGHTS.load(path), own)
    own.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights before they are filled
            return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=own)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{WEIGHTS.name} does not fit this torch-fidelity: {str(error).splitlines()[0]}") from error
