"""How likely held-out samples are under a model."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undiffuse.data import Split
from undiffuse.examples import balanced, centred, conditions_of
from undiffuse.likelihood import variational_bound
from undiffuse.pipeline import Pipeline
from undiffuse.plots import Picture

BOUND_SAMPLES, BOUND_DRAWS = 512, 16  # held-out samples, and levels of each


def measure(
    model: Pipeline, split: Split, names: Sequence[str] | None, pictures: dict[str, Picture], deadline: float | None
) -> dict[str, Any]:
    return {"bound": bound(model, split)}


def bound(model: Pipeline, split: Split) -> dict[str, Any]:
    """The variational bound of held-out samples under their own conditions, in bits/dimension, by its terms."""
    rows = balanced(split.held_out, min(BOUND_SAMPLES, len(split.held_out)))
    terms: dict[str, list[Tensor]] = {"prior": [], "diffusion": [], "reconstruction": []}
    for few in rows.split(256):
        x0 = model.codec.encode(centred(split.held_out, model.shape, few)).to(model.device)
        bound = variational_bound(model.denoiser, x0, few, conditions_of(split.held_out, few, model), BOUND_DRAWS)
        for name, values in terms.items():
            values.append(getattr(bound, name).double().cpu() / math.log(2))
    whole = {name: torch.cat(values) for name, values in terms.items()}
    total = torch.stack(list(whole.values())).sum(0)
    return {
        "bits_per_dim": round(float(total.mean()), 5),
        "standard_error": round(float(total.std() / math.sqrt(len(total))), 5),
        "terms": {name: round(float(values.mean()), 5) for name, values in whole.items()},
        "n": len(total),
        "draws": BOUND_DRAWS,
    }
