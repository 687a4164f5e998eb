"""A small run for tests: 8x8 digits, a narrow network, a few steps."""

from pathlib import Path

from undiffuse import recipes
from undiffuse.experiment import Experiment

TINY = [
    "network.width=16",
    "network.blocks=1",
    "network.dropout=0.1",
    "training.batch_size=16",
    "training.warmup=4",
    "training.log_every=5",
    "training.validate_every=10",
    "training.sample_every=1000",
    "training.checkpoint_every=6",
    "training.precision=float32",
]


def tiny(folder: Path, *overrides: str, steps: int | None = 12) -> Experiment:
    """An experiment ready to train in `folder`."""
    bound = [] if steps is None else [f"training.steps={steps}"]
    return Experiment(recipes.named("digits").changed([*TINY, *bound, *overrides]), folder)


def train(experiment: Experiment, until: int | None = None) -> None:
    """Train to the end, or stop and save at the first event at or after step `until`."""
    for event in experiment.train(preview=False):
        if until is not None and event.step >= until:
            experiment.run.stop()
