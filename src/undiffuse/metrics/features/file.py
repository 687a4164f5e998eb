"""Features of one's own: any module of PyTorch, and TorchScript and ONNX files."""

import hashlib
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from undiffuse.errors import InputError, unknown
from undiffuse.metrics.features.base import Features, Images, fingerprint, in_colour
from undiffuse.metrics.features.normalise import NORMALISATIONS, normalised
from undiffuse.metrics.features.resize import RESIZES, resize


class Custom(Features):
    """What any network of one's own shares: what is done to a picture before it, which is a part of its key.

    The network takes float32 (N, C, H, W) and gives features (N, d), or features and scores.

    Args:
        size: pixels a side that pictures are resized to; None: they stay as they are.
        resize: one of `RESIZES`.
        normalise: one of `NORMALISATIONS`: "unit" for [0, 1], "symmetric" for [-1, 1], "levels" for [0, 255],
            "imagenet", "clip".
        colour: whether grey pictures become RGB.

    Raises: InputError for a size below 1 and for unknown names.
    """

    def __init__(self, size: int | None, resize: str, normalise: str, colour: bool) -> None:
        if size is not None and size < 1:
            raise InputError(f"the size of pictures must be 1 pixel or more, not {size}")
        if resize not in RESIZES:
            raise unknown("resizing", resize, RESIZES)
        if normalise not in NORMALISATIONS:
            raise unknown("normalisation", normalise, NORMALISATIONS)
        self.size, self.resizing, self.normalisation, self.colour = size, resize, normalise, colour

    @property
    def preparation(self) -> str:
        """What is done to a picture, as a text for the key."""
        size = "as they are" if self.size is None else f"{self.size}, {self.resizing}"
        return f"size {size}; {self.normalisation}; {'colour' if self.colour else 'channels as they are'}"

    def embed(self, images: Images) -> tuple[Tensor, Tensor | None]:
        images = in_colour(images) if self.colour else images
        x = images.float() if self.size is None else resize(images, self.size, self.resizing)
        channels = len(NORMALISATIONS[self.normalisation][0])
        if channels > 1 and x.shape[1] != channels:
            raise InputError(f"the normalisation {self.normalisation} is of RGB, not of {x.shape[1]} channels")
        try:
            found = self.run(normalised(x, self.normalisation))
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InputError(f"{self.name}: the network does not take pictures {tuple(x.shape)}: {reason}") from error
        parts = (found,) if isinstance(found, Tensor) else found
        if not (isinstance(parts, tuple | list) and len(parts) in (1, 2) and all(isinstance(p, Tensor) for p in parts)):
            raise InputError(
                f"{self.name}: a network gives features, or features and scores, not {type(found).__name__}"
            )
        return parts[0], parts[1] if len(parts) == 2 else None

    @abstractmethod
    def run(self, x: Tensor) -> object:
        """The network on prepared pictures."""


class Module(Custom):
    """Any `nn.Module`. Its key covers its class, its structure and its weights, and not the code of its `forward`.

    Args:
        network: float32 (N, C, H, W) -> (N, d), or a pair of that and scores (N, classes). Set to evaluation mode, and
            moved to the device.
        name: what stands behind "Frechet distance over".
        size, resize, normalise, colour: as in `Custom`.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        size: int | None = None,
        resize: str = "clean",
        normalise: str = "unit",
        colour: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, resize, normalise, colour)
        self.network, self.name, self.device = network.to(device).eval(), name, device
        self.key = fingerprint("module", self.preparation, network)

    def run(self, x: Tensor) -> object:
        return self.network(x)


class TorchScript(Custom):
    """A file that `torch.jit.save` wrote. It is a program: take it from those whom you trust.

    Args:
        path: the file.
        size, resize, normalise, colour: as in `Custom`.

    Raises: InputError for a file that is missing, damaged, or no TorchScript.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        resize: str = "clean",
        normalise: str = "unit",
        colour: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, resize, normalise, colour)
        content = _hash(path)
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"cannot read the TorchScript file {path}: {_short(error)}") from error
        self.name, self.device = f"features of {Path(path).name}", device
        self.key = fingerprint("torchscript", self.preparation, content)

    def run(self, x: Tensor) -> object:
        return self.network(x)


class ONNX(Custom):
    """An ONNX file, run by onnxruntime: on the CPU, or on CUDA where the device is and onnxruntime has it.

    Args:
        path: the file, of one input. Its first output are the features, its second, where there is one, the scores.
        size: by default the one that the file fixes, if it fixes one.
        resize, normalise, colour: as in `Custom`.

    Raises: InputError without onnxruntime (`undiffuse[metrics]`), and for a file that is missing, damaged, or of
        another form.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        resize: str = "clean",
        normalise: str = "unit",
        colour: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        content = _hash(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"ONNX files need onnxruntime ({error}): pip install 'undiffuse[metrics]'") from error
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        providers = [*(set(wanted) & set(onnxruntime.get_available_providers())), "CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # its errors have no common class but this one
            raise InputError(f"cannot read the ONNX file {path}: {_short(error)}") from error
        if len(self.session.get_inputs()) != 1 or len(self.session.get_inputs()[0].shape) != 4:
            shapes = [list(entry.shape) for entry in self.session.get_inputs()]
            raise InputError(f"the ONNX file {path} must take one input (N, C, H, W), not {shapes}")
        self.input = self.session.get_inputs()[0]
        batch, _, height, width = self.input.shape
        if size is None and isinstance(height, int) and height == width:
            size = height
        super().__init__(size, resize, normalise, colour)
        self.batch_size = 1 if batch == 1 else self.batch_size
        self.name = f"features of {Path(path).name}"
        self.key = fingerprint("onnx", self.preparation, content)

    def run(self, x: Tensor) -> object:
        try:
            found = self.session.run(None, {self.input.name: np.ascontiguousarray(x.numpy())})
        except Exception as error:
            raise ValueError(_short(error)) from error
        return [torch.from_numpy(array) for array in found]


def _hash(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the file of features {path}: {error.strerror or error}") from error


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
