"""Networks: `network(x, c_noise, **condition) -> tensor`, one file each, knowing nothing of diffusion.

Those in CLASSIFIERS give logits (B, classes), not samples.
"""

from torch import nn

from undiffuse.networks.dit import DiT
from undiffuse.networks.encoder import Encoder
from undiffuse.networks.mlp import MLP
from undiffuse.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "dit": DiT, "mlp": MLP}
CLASSIFIERS: dict[str, type[nn.Module]] = {"encoder": Encoder}

__all__ = ["CLASSIFIERS", "MLP", "NETWORKS", "DiT", "Encoder", "UNet"]
