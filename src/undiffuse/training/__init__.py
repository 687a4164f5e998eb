"""Training: the state, the loop, and a run in a folder."""

from undiffuse.training.classifier import ClassifierObjective
from undiffuse.training.levels import loss_by_level
from undiffuse.training.loop import Batch, train
from undiffuse.training.run import Event, Plan, Run, checkpoints, read_metrics
from undiffuse.training.state import TrainState

__all__ = [
    "Batch", "ClassifierObjective", "Event", "Plan", "Run", "TrainState", "checkpoints", "loss_by_level",
    "read_metrics", "train",
]  # fmt: skip
