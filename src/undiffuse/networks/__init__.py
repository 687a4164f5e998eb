"""Networks: `network(x, c_noise, **condition) -> tensor`, one file each, knowing nothing of diffusion."""

from torch import nn

from undiffuse.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet}

__all__ = ["NETWORKS", "UNet"]
