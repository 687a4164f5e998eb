"""Guidance that keeps the spread of a sample (Lin et al. 2024, "Common diffusion noise schedules ... are flawed")."""

import torch

from undiffuse.denoiser import Encoded, Estimate, Sample
from undiffuse.errors import InputError
from undiffuse.guidance.base import Guidance, Scale, Tempered, scale_of
from undiffuse.guidance.estimates import with_x0
from undiffuse.schedule import Time, along_batch


class Rescaled(Tempered):
    """x_0 guided, times what gives it the standard deviation of x_0 without guidance, to a share (eq. 15 and 16):

        x_0 = x_0_guided (share std(x_0_plain) / std(x_0_guided) + 1 - share)

    std: per sample, over all its elements; a constant sample is left as it is. share: from 0 (the guidance itself) to
    1, a number, or one per sample (B,); the paper uses 0.7. The paper's listing rescales what its network predicts, v,
    which is -x_0 at the terminal level it is about; here it is x_0 for every prediction.

    Raises: InputError around what is not a guidance, and for a share outside [0, 1].
    """

    held = ("share",)

    def __init__(self, guidance: Guidance, share: Scale = 0.7) -> None:
        super().__init__(guidance)
        self.share = scale_of(share, "rescaling")
        if not bool(((self.share >= 0) & (self.share <= 1)).all()):
            raise InputError(f"the share of rescaling lies between 0 and 1, not at {self.share.tolist()}")

    def both(self, x_t: Sample, t: Time, condition: Encoded | None = None) -> tuple[Estimate, Estimate]:
        self.check_batch(len(x_t))
        plain, guided = self.denoiser.both(x_t, t, condition)
        if not bool(self.share.any()):
            return plain, guided
        x0 = guided.x0
        wanted, found = _spread(plain.x0), _spread(x0)
        ratio = torch.where(found > 0, wanted / found, 1.0)
        share = along_batch(self.share.expand(len(x0)), x0)
        return plain, with_x0(guided, x0 * torch.lerp(torch.ones_like(ratio), ratio, share))


def _spread(x: Sample) -> Sample:
    """The standard deviation of each sample, (B, 1, ...)."""
    return x.flatten(1).std(1, correction=0).reshape(-1, *[1] * (x.ndim - 1))
