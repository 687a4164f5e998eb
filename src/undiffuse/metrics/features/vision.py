"""DINOv2 and CLIP, through transformers."""

import logging
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.features.base import Features, Images, fingerprint, in_colour
from undiffuse.metrics.features.normalise import normalised
from undiffuse.metrics.features.resize import middle_square, resize

LARGE_DINOV2 = "facebook/dinov2-large"
LARGE_CLIP = "openai/clip-vit-large-patch14"
DINOV2_SIZE = 224  # pixels; the networks were finished at 518 and take any multiple of 14


class DINOv2(Features):
    """The class token of DINOv2 after the last normalisation, at 224 pixels: what FD_DINOv2 is measured over.

    The default is the network of Stein et al., ViT-L/14 (1,024 features); `facebook/dinov2-base` and
    `facebook/dinov2-small` are lighter and give values of their own. Pictures are resized whole, antialiased, clipped,
    and normalised by ImageNet's mean and deviation.

    Args:
        source: a name on the Hugging Face hub, or a local folder with config.json and model.safetensors.

    Raises: InputError as `pretrained`.

    Reference: Oquab et al. 2023, DINOv2; Stein et al. 2023, Exposing flaws of generative model evaluation metrics.
    """

    batch_size = 32

    def __init__(self, source: str | Path = LARGE_DINOV2, device: str | torch.device = "cpu") -> None:
        self.network, self.device = pretrained("Dinov2Model", source).to(device), device
        self.dim = int(self.network.config.hidden_size)
        self.name = f"DINOv2 features of {Path(source).name}"
        self.key = fingerprint("dinov2", str(DINOV2_SIZE), self.network)

    def embed(self, images: Images) -> tuple[Tensor, None]:
        x = resize(in_colour(images), DINOV2_SIZE).clamp(0, 255)
        return self.network(normalised(x, "imagenet")).pooler_output, None


class CLIP(Features):
    """The projected picture embedding of CLIP, before it is brought to length 1.

    Pictures are cut to the square in their middle and resized, antialiased, as CLIP was trained.

    Args:
        source: a name on the Hugging Face hub, or a local folder with config.json and model.safetensors.

    Raises: InputError as `pretrained`.

    Reference: Radford et al. 2021, Learning transferable visual models; Kynkaanniemi et al. 2023, The role of ImageNet
    classes in FID (CLIP features for Frechet distances).
    """

    batch_size = 32

    def __init__(self, source: str | Path = LARGE_CLIP, device: str | torch.device = "cpu") -> None:
        self.network, self.device = pretrained("CLIPVisionModelWithProjection", source).to(device), device
        self.size, self.dim = int(self.network.config.image_size), int(self.network.config.projection_dim)
        self.name = f"CLIP features of {Path(source).name}"
        self.key = fingerprint("clip", str(self.size), self.network)

    def embed(self, images: Images) -> tuple[Tensor, None]:
        return self.network(clip_pixels(images, self.size)).image_embeds, None


def clip_pixels(images: UInt8[Tensor, "n c h w"], size: int) -> Float32[Tensor, "n 3 size size"]:
    """Pictures as CLIP's networks take them: the square in the middle, resized, clipped and normalised."""
    return normalised(resize(middle_square(in_colour(images)), size).clamp(0, 255), "clip")


def pretrained(kind: str, source: str | Path) -> Any:
    """A network of transformers in float32, in evaluation mode, from the hub or a local folder; safetensors only.

    kind: the name of its class in transformers.

    Raises: InputError, in one line, without transformers, and where `source` is neither a folder with a network of this
        kind nor a name that can be downloaded.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{kind} needs transformers ({error}): pip install 'undiffuse[metrics]'") from error
    said = transformers.utils.logging
    loudness = said.get_verbosity()
    try:
        said.set_verbosity(logging.CRITICAL)  # it prints a table of the weights that a part of a network leaves out
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights before they are filled
            network, report = getattr(transformers, kind).from_pretrained(
                source, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot load the network {source} ({_first_line(error)}): give a local folder with config.json and "
            "model.safetensors, or a name that can be downloaded from the Hugging Face hub"
        ) from error
    finally:
        said.set_verbosity(loudness)
    if missing := report["missing_keys"]:
        raise InputError(f"{source} holds no {kind}: {len(missing)} of its weights are missing, first {min(missing)}")
    return network.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
