"""LPIPS: how far two pictures are from each other to the eye, by the activations of VGG-16."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from undiffuse import weights
from undiffuse.errors import InputError
from undiffuse.metrics.features.base import check_images, in_colour
from undiffuse.metrics.features.normalise import normalised
from undiffuse.metrics.features.pretrained import Published
from undiffuse.metrics.measurement import Measurement, mean

VGG = Published(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
LAYERS = Published(  # the authors' v0.1/vgg.pth, under another name
    "weights-vgg16-lpips.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # configuration D of VGG
ENDS = (3, 8, 15, 22, 29)  # of the stages, among the layers
SMALLEST_SIDE = 16  # pixels: four poolings
EPSILON = 1e-10  # beside the length of an activation


class LPIPS(nn.Module):
    """The learned perceptual distance of pictures, 0 for equal ones.

        d = sum_l mean over positions of w_l . (a_l - b_l)^2

    with a_l and b_l the activations after the last ReLU of each of VGG-16's five stages, each position brought to
    length 1, and w_l >= 0 one learned weight a channel. Version 0.1, `net="vgg"`, lower is nearer. Values under other
    networks ("alex") are others.

    Args:
        vgg, layers: the files of weights; by default they are looked for, and downloaded (553 MB).

    Raises: InputError as `Published.find`, and for files that hold other weights.

    Reference: Zhang et al. 2018, The unreasonable effectiveness of deep features as a perceptual metric, eq. 1.
    """

    def __init__(
        self, vgg: str | Path | None = None, layers: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__()
        with torch.device("meta"):  # nothing is initialized, so no random number is drawn
            self.features = nn.Sequential(*_layers())
            self.lin = nn.ParameterList(torch.empty(1, widths[-1], 1, 1) for widths in STAGES)
        last = LAYERS.load(layers)
        body = {name: value for name, value in VGG.load(vgg).items() if name.startswith("features.")}
        self.to_empty(device="cpu")
        weights.fill(
            self, body | {f"lin.{i}": last[f"lin{i}.model.1.weight"] for i in range(len(STAGES))}, Path(VGG.name)
        )
        self.eval().requires_grad_(False).to(device)

    def forward(self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, " n"]:
        """The distance of each picture to its other."""
        distance = torch.zeros(len(images), device=images.device)
        for a, b, weight in zip(self._activations(images), self._activations(others), self.lin, strict=True):
            distance += (weight * (a - b).square()).sum(1).mean((1, 2))
        return distance

    def _activations(self, images: UInt8[Tensor, "n c h w"]) -> Iterator[Tensor]:
        x = normalised(in_colour(images).float(), "imagenet")
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in ENDS:
                yield x / (x.square().sum(1, keepdim=True).sqrt() + EPSILON)


def mean_lpips(
    network: LPIPS, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "n c h w"], batch_size: int = 16
) -> Measurement:
    """The mean distance of reconstructions to their references, with its standard error over pictures.

    Args:
        images, others: uint8 (N, C, H, W) of one shape, 16 pixels a side or more; grey ones become RGB.

    Raises: InputError for pictures of another type or shape.
    """
    check_images(images)
    if others.dtype != torch.uint8 or images.shape != others.shape or min(images.shape[-2:]) < SMALLEST_SIDE:
        raise InputError(
            f"LPIPS compares uint8 pictures of one shape, {SMALLEST_SIDE} pixels a side or more, not "
            f"{tuple(images.shape)} with {others.dtype} {tuple(others.shape)}"
        )
    device = network.lin[0].device
    with torch.inference_mode():
        pairs = zip(images.split(batch_size), others.split(batch_size), strict=True)
        values = torch.cat([network(a.to(device), b.to(device)) for a, b in pairs])
    return mean("lpips", values, network="vgg", version="0.1")


def _layers() -> Iterator[nn.Module]:
    """The convolutional part of VGG-16 up to its last ReLU, numbered as in the file of weights."""
    channels = 3
    for i, widths in enumerate(STAGES):
        if i:
            yield nn.MaxPool2d(2)
        for width in widths:
            yield nn.Conv2d(channels, width, 3, padding=1)
            yield nn.ReLU()
            channels = width
