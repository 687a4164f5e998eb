"""Networks: `network(x, c_noise, **condition) -> tensor`, one file each, knowing nothing of diffusion."""

from torch import nn

from undiffuse.networks.dit import DiT
from undiffuse.networks.mlp import MLP
from undiffuse.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "dit": DiT, "mlp": MLP}

__all__ = ["MLP", "NETWORKS", "DiT", "UNet"]
