"""How likely held-out samples are under a model, which of them are most and least, and what each noise level costs."""

from collections.abc import Sequence
from typing import Any

import torch

import undiffuse
from undiffuse import bits_per_dim, plots
from undiffuse.bits_per_dim import BitsPerDim, Settings
from undiffuse.data import Split
from undiffuse.evaluation.measured import OF_MODELS
from undiffuse.examples import balanced, centred
from undiffuse.likelihood import rate_distortion
from undiffuse.metrics import Measurement
from undiffuse.metrics.measurement import mean
from undiffuse.metrics.statistics import data_hash
from undiffuse.modalities import image
from undiffuse.pipeline import Pipeline
from undiffuse.plots import Picture

SAMPLES, IN_HASTE = 128, 32  # held-out ones; before a deadline
SETTINGS = Settings(tolerance=1e-3, exact=False)
SHOWN = 10  # of the most and of the least likely


def measure(
    model: Pipeline, split: Split, names: Sequence[str] | None, pictures: dict[str, Picture], haste: bool
) -> dict[str, Any]:
    """The likelihood of held-out samples under their own conditions, in bits/dimension, by the ODE and by both bounds.

    Nothing where the names of metrics ask for others alone. haste: of fewer samples.
    """
    if names is not None and not set(OF_MODELS) & set(names):
        return {}
    rows = balanced(split.held_out, min(IN_HASTE if haste else SAMPLES, len(split.held_out)))
    found = bits_per_dim.measure(model, split.held_out, rows, SETTINGS)
    bits = found.columns["ode"].tolist()
    pictures["likelihoods"] = plots.likelihoods({"held-out images, by the ODE": bits})
    ranked = found.ranked()
    few = min(SHOWN, len(ranked) // 2) or 1
    shown = centred(split.held_out, model.shape, torch.cat([ranked[:few], ranked[-few:]]))
    pictures["extremes"] = image.grid(image.to_array(shown), columns=few, padding=2)
    curve = {name: values.tolist() for name, values in rate_distortion(found.bound())._asdict().items()}
    pictures["rate_distortion"] = plots.rate_distortion(curve)
    reference = {
        "reference": f"{len(rows):,} held-out images of {split.held_out.name}",
        "reference_key": data_hash(centred(split.held_out, model.shape, rows))[:16],
        "undiffuse": undiffuse.__version__,
    }
    return {
        "likelihood": found.summary()
        | {
            "measurements": [{**measurement.to_json(), **reference} for measurement in _measurements(found)],
            "samples": [round(value, 4) for value in bits],
            "extremes": f"Above: the {few} most likely of them; below: the {few} least likely, the least at the end.",
        }
    }


def _measurements(found: BitsPerDim) -> list[Measurement]:
    """Bits/dimension by the ODE and by both bounds, with what each was computed by."""
    summary = found.summary()
    settings = summary["settings"]
    common = {"log_snr": round(summary["log_snr"], 4), "guidance": settings["guidance"], "seed": settings["seed"]}
    of_ode = {name: settings[name] for name in ("sampler", "exact", "probes", "dequantisation")}
    of_bounds = {"draws": settings["draws"]}
    kinds = {
        "ode": ("bits-per-dimension", of_ode),
        "continuous": ("continuous-bound", of_bounds),
        "discrete": ("discrete-bound", of_bounds | {"chain": settings["chain"]}),
    }
    return [mean(name, found.columns[key], **common, **how) for key, (name, how) in kinds.items()]
