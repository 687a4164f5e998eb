"""CLIP score: does a picture show what its text says?"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from undiffuse.errors import InputError
from undiffuse.metrics.features.base import check_images
from undiffuse.metrics.features.vision import LARGE_CLIP, clip_pixels, pretrained
from undiffuse.metrics.measurement import Measurement, mean

BATCH_SIZE = 32


class CLIPScore:
    """100 max(cos, 0) of the embeddings of a picture and of its text, by a CLIP of transformers.

    Without the prompt "A photo depicts" and the factor 2.5 of the reference, as torchmetrics has it: 0 to 100, in
    practice 20 to 35. It rises with what CLIP was trained on, and depends on the network, which a measurement names.

    Args:
        source: a name on the Hugging Face hub, or a local folder with the network and its tokenizer.

    Raises: InputError as `pretrained`, and for a source without a tokenizer.

    Reference: Hessel et al. 2021, CLIPScore: a reference-free evaluation metric for image captioning, eq. 1.
    """

    def __init__(self, source: str | Path = LARGE_CLIP, device: str | torch.device = "cpu") -> None:
        self.network, self.source, self.device = pretrained("CLIPModel", source).to(device), str(source), device
        from transformers import CLIPTokenizer

        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{source} holds no tokenizer of CLIP: {str(error).splitlines()[0]}") from error
        known, needed = self.tokenizer.vocab_size, self.network.config.text_config.vocab_size
        if known < needed:  # where there is no file, transformers makes one of three words
            raise InputError(f"{source} holds no tokenizer of CLIP: one of {needed} words is needed, not of {known}")

    def scores(self, images: UInt8[Tensor, "n c h w"], texts: Sequence[str]) -> Float32[Tensor, " n"]:
        """The score of each picture with its text.

        Texts are cut after as many tokens as the network takes (77 for the published ones).

        Args:
            images: uint8 (N, C, H, W), N >= 1; the square in their middle is what counts.
            texts: one for each.

        Raises: InputError for pictures of another type or shape, and for another number of texts.
        """
        check_images(images)
        if isinstance(texts, str) or len(texts) != len(images):
            raise InputError(f"a CLIP score needs a text for each of {len(images)} pictures, not {texts!r:.80}")
        starts = range(0, len(images), BATCH_SIZE)
        with torch.inference_mode():
            return torch.cat(
                [self._batch(images[i : i + BATCH_SIZE], list(texts[i : i + BATCH_SIZE])) for i in starts]
            ).cpu()

    def measure(self, images: UInt8[Tensor, "n c h w"], texts: Sequence[str]) -> Measurement:
        """The mean score, with its standard error over pictures. Raises: InputError as `scores`."""
        return mean("clip-score", self.scores(images, texts), network=self.source)

    def _batch(self, images: UInt8[Tensor, "n c h w"], texts: list[str]) -> Float32[Tensor, " n"]:
        config = self.network.config
        longest = config.text_config.max_position_embeddings
        words = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pixels = clip_pixels(images.to(self.device), config.vision_config.image_size)
        found = self.network(pixel_values=pixels, **words.to(self.device))
        return 100 * F.cosine_similarity(found.image_embeds, found.text_embeds).clamp(min=0)
