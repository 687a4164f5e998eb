"""How likely held-out samples are under a model, which of them are most and least, and what each noise level costs."""

from collections.abc import Sequence
from typing import Any

import torch

from undiffuse import bits_per_dim, plots
from undiffuse.bits_per_dim import BitsPerDim, Settings
from undiffuse.data import Split
from undiffuse.evaluation.measured import OF_MODELS
from undiffuse.examples import balanced, centred
from undiffuse.likelihood import rate_distortion
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
    return {"likelihood": _numbers(found, bits, few)}


def _numbers(found: BitsPerDim, bits: Sequence[float], few: int) -> dict[str, Any]:
    summary = found.summary()
    how = {
        "ode": f"{summary['settings']['sampler']}, {summary['ode']['evaluations']:.0f} evaluations, "
        f"{summary['settings']['probes']} probe, {summary['settings']['dequantisation']} dequantisation",
        "continuous_bound": f"{summary['settings']['draws']} levels a sample",
        "discrete_bound": f"{summary['settings']['draws']} steps a sample of the chain",
    }
    names = {"ode": "probability-flow ODE", "continuous_bound": "continuous bound", "discrete_bound": "discrete bound"}
    rows = [
        (name, f"{summary[key]['bits_per_dim']:.3f}", _error(summary[key]), str(summary["n"]), how[key])
        for key, name in names.items()
    ]
    terms = "; ".join(
        f"{name}: " + ", ".join(f"{term} {value:.3f}" for term, value in summary[key]["terms"].items())
        for key, name in names.items()
    )
    return summary | {
        "rows": rows,
        "samples": [round(value, 4) for value in bits],
        "notes": [
            f"{summary['n']} held-out samples under their own conditions; errors are over samples. The density is the "
            f"model's at log-SNR {summary['log_snr']:.2f}. Terms: {terms}."
        ],
        "extremes": f"Above: the {few} most likely of them; below: the {few} least likely, the least at the end.",
    }


def _error(found: dict[str, Any]) -> str:
    return "-" if found["standard_error"] is None else f"{found['standard_error']:.3f}"
