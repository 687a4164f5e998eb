"""How well a model that is shown a smaller picture restores the larger one: PSNR of samples against the truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse import metrics
from undiffuse.codecs import Pixels
from undiffuse.conditioning import Image
from undiffuse.conditioning.image import as_floats, enlarged
from undiffuse.data import Split
from undiffuse.errors import InputError
from undiffuse.examples import balanced, centred
from undiffuse.metrics.lpips import LPIPS, mean_lpips
from undiffuse.metrics.ssim import SIZE
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline

OF_RESTORATIONS = ("psnr", "ssim", "lpips")  # names of metrics
DRAWS = 8  # samples of one input whose mean comes near to the expected picture, which has the best PSNR there is
MOST_AVERAGED = 200
SHOWN = 10


def restored(model: Pipeline) -> str | None:
    """The name of the condition that is a smaller copy of the sample, where the model takes one."""
    smaller = (name for name, part in model.parts.items() if isinstance(part, Image) and part.derived)
    return next(smaller, None) if isinstance(model.codec, Pixels) else None


def perceptual(model: Pipeline, names: Sequence[str] | None) -> LPIPS | None:
    """The network of LPIPS, where the names of metrics ask for it: its weights are downloaded, so never by default.

    Raises: InputError for metrics of restorations by a model that restores nothing, and where there are no weights.
    """
    asked = [name for name in names or () if name in OF_RESTORATIONS]
    if asked and restored(model) is None:
        raise InputError(
            f"{', '.join(asked)}: samples against their originals, and this model is not shown the sample made smaller"
        )
    return LPIPS(device=model.device) if "lpips" in asked else None


def measure(
    model: Pipeline,
    split: Split,
    condition: dict[str, Tensor],
    samples: Tensor,
    protocol: dict[str, Any],
    eye: LPIPS | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Numbers and a picture for samples uint8 (N, C, H, W) drawn under `examples.conditions_in_turn` for n = N.

    The numbers are PSNRs in decibels and, of 11 pixels a side and more, structural similarities: of one sample, of the
    mean of several, and of bicubic enlargement; and by `eye` LPIPS; "diversity" says how far several draws for
    one input lie apart. protocol: how
    the samples were made, which stands beside each.
    """
    name = restored(model)
    assert name is not None
    part = model.parts[name]
    assert isinstance(part, Image)
    n = len(samples)
    truth = centred(split.held_out, model.shape, balanced(split.held_out, n))
    small = condition[name]
    bicubic = Pixels().decode(enlarged(as_floats(small), part.factor))
    averaged = min(n, MOST_AVERAGED)
    few: dict[str, Any] = {key: values[:averaged] for key, values in condition.items()}
    drawn = [samples[:averaged]]
    for draw in range(1, DRAWS):
        more = torch.from_numpy(model.sample(averaged, seed=draw << 32, **few))
        drawn.append(more.reshape(averaged, *more.shape[1:3], -1).movedim(-1, 1))
    draws = torch.stack(drawn, 1)
    average = draws.double().mean(1).round().to(torch.uint8)
    numbers = {
        "condition": name,
        "factor": part.factor,
        "draws": DRAWS,
        "diversity": {**metrics.measure_draw_diversity(draws).to_json(), **protocol},
        "sample": _compared(samples, truth, protocol, eye),
        f"mean_of_{DRAWS}": _compared(average, truth[:averaged], protocol, eye),
        "bicubic": _compared(bicubic, truth, protocol, eye),
        f"bicubic_of_the_first_{averaged}": _compared(bicubic[:averaged], truth[:averaged], protocol, eye),
    }
    repeated = F.interpolate(small.float(), scale_factor=float(part.factor), mode="nearest").to(torch.uint8)
    rows = [pictures[:SHOWN] for pictures in (repeated, bicubic, samples, average, truth)]
    return numbers, image.grid(image.to_array(torch.cat(rows)), columns=min(n, SHOWN), padding=2)


def _compared(images: Tensor, truth: Tensor, protocol: dict[str, Any], eye: LPIPS | None) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS of images against the truth, each with its error."""
    found = [metrics.measure_psnr(images, truth)]
    if min(images.shape[-2:]) >= SIZE:
        found.append(metrics.measure_ssim(images, truth))
    if eye is not None:
        found.append(mean_lpips(eye, images, truth))
    return {measurement.metric: {**measurement.to_json(), **protocol} for measurement in found}
