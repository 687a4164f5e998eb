"""What pictures are measured through: the contract of every network of features."""

import hashlib
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from undiffuse.errors import InputError

Images = UInt8[Tensor, "images channels height width"]
Found = tuple[Float32[Tensor, "images features"], Float32[Tensor, "images classes"] | None]


class Features(ABC):
    """Pictures in, one row of features each out, and scores of classes where the network has them.

    The same pictures give the same rows whatever they stand beside, up to rounding: networks are in evaluation mode and
    take the pictures in batches of their own.

    Attributes:
        name: what stands behind "Frechet distance over"; two names are equal only where values may be compared.
        key: a hash of the network and of all that is done to a picture before it, for caches.
        dim: features a picture, where that is known before one is seen.
        device: where the network is.
        batch_size: pictures that it takes at once.
        is_inception: whether these are the features that the names FID, KID and Inception Score were defined over.
    """

    name: str
    key: str
    dim: int | None = None
    device: str | torch.device = "cpu"
    batch_size: int = 64
    is_inception: bool = False

    @abstractmethod
    def embed(self, images: Images) -> tuple[Float[Tensor, "images features"], Float[Tensor, "images classes"] | None]:
        """Features, and scores (logits) or None, of one batch that is on the network's device."""

    def __call__(self, images: Images) -> Found:
        """Features (N, d), and scores (N, classes) or None, as float32 on the device of the pictures.

        Args:
            images: uint8 (N, C, H, W), N >= 1. Grey pictures become RGB where the network wants three channels.

        Raises: InputError for pictures of another type or shape, or with channels that the network cannot take, and
            for a network whose output is not of that form or not finite.
        """
        check_images(images)
        # Within a step of training in bfloat16 too, numbers are those of float32.
        with torch.inference_mode(), torch.autocast(torch.device(self.device).type, enabled=False):
            batches = [self.embed(batch.to(self.device)) for batch in images.split(self.batch_size)]
        features = self._joined([batch[0] for batch in batches], images, "features")
        scores = [batch[1] for batch in batches if batch[1] is not None]
        return features, self._joined(scores, images, "scores") if scores else None

    def _joined(self, batches: list[Tensor], images: Images, what: str) -> Float32[Tensor, "images columns"]:
        rows = sum(len(batch) for batch in batches if batch.ndim == 2)
        if rows != len(images) or not all(batch.is_floating_point() for batch in batches):
            shapes = ", ".join(str(tuple(batch.shape)) for batch in batches[:2])
            raise InputError(
                f"{self.name}: {what} must be numbers (N, d), a row a picture, not {shapes} of {len(images)}"
            )
        # The clone leaves inference mode behind, so that callers may differentiate through what they compute from it.
        whole = torch.cat(batches).to(images.device, torch.float32).clone()
        if not whole.isfinite().all():
            raise InputError(f"{self.name}: some {what} are NaN or infinite")
        return whole


def check_images(images: Tensor) -> None:
    """Raises: InputError unless `images` is uint8 (N, C, H, W), not empty."""
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise InputError(f"images must be uint8 (N, C, H, W), not empty, not {images.dtype} {tuple(images.shape)}")


def in_colour(images: Images) -> UInt8[Tensor, "images 3 height width"]:
    """Pictures with three channels: grey ones three times over.

    Raises: InputError for other numbers of channels than 1 and 3.
    """
    if images.shape[1] not in (1, 3):
        raise InputError(f"the features take pictures of 1 or 3 channels, not {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def fingerprint(*parts: str | bytes | nn.Module) -> str:
    """A hash of texts, bytes and networks (their structure and every weight and buffer), 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, nn.Module):
            whole = part.encode() if isinstance(part, str) else part
            digest.update(b"%d:" % len(whole) + whole)  # the length keeps "a", "bc" apart from "ab", "c"
            continue
        kind = type(part)
        digest.update(f"{kind.__module__}.{kind.__qualname__}\n{part!r}\n".encode())
        for name, value in sorted(part.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
