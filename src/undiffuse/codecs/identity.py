"""No codec: numbers as the model sees them."""

from dataclasses import dataclass

from jaxtyping import Float, Float32
from torch import Tensor

from undiffuse.errors import InputError


@dataclass(frozen=True)
class Identity:
    """Floats as they are: latents whose autoencoder is elsewhere, measurements, pictures in a range of their own."""

    def encode(self, samples: Float[Tensor, "batch ..."]) -> Float32[Tensor, "batch ..."]:
        """The same numbers as float32. Raises: InputError for bytes, whose range no model expects."""
        if not samples.is_floating_point():
            raise InputError(f"samples are {samples.dtype}: floats are allowed (codec=pixels takes bytes)")
        return samples.float()

    def decode(self, x: Float[Tensor, "batch ..."]) -> Float32[Tensor, "batch ..."]:
        """The same numbers as float32."""
        return x.float()
