"""The loss of each noise level, on samples that the model was trained on and on others."""

from collections.abc import Mapping, Sequence
from typing import Any

from undiffuse import plots
from undiffuse.data import Dataset, Split
from undiffuse.examples import centred, conditions_of, drawn
from undiffuse.experiment import validation
from undiffuse.pipeline import Pipeline
from undiffuse.plots import Picture
from undiffuse.training import loss_by_level

LEVELS, SAMPLES = 12, 768  # samples of each part, at most


def measure(
    model: Pipeline, split: Split, log: Sequence[Mapping[str, Any]], pictures: dict[str, Picture]
) -> dict[str, Any]:
    """The mean squared error of the noise at levels even in log-SNR, and the alarms of the training's log."""
    parts = {"training images": split.train, "held-out images": split.held_out}
    found = {name: loss_by_level(model.denoiser.eval(), _batches(model, part), LEVELS) for name, part in parts.items()}
    pictures["levels"] = plots.levels(found)
    n = " and ".join(f"{int(sum(row['n'] for row in rows))} {name}" for name, rows in found.items())
    note = (
        f"The mean squared error of the noise, {n}, each at one level with noise of its own seed: the same at every "
        "call. Where held-out images cost more, the model knows its training images by heart."
    )
    alarms = [str(line["alarm"]) for line in log if line.get("alarm")]
    return {"levels": {"note": note, "rows": found}, "alarms": alarms}


def _batches(model: Pipeline, part: Dataset) -> Any:
    few = part.subset(drawn(len(part), min(SAMPLES, len(part))))
    samples = centred(few, model.shape, slice(None)).to(model.device)
    return validation(samples, model.codec.encode, lambda rows: conditions_of(few, rows, model))
