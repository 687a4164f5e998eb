"""Training: the state, the loop, and a run in a folder."""

from undiffuse.training.classifier import ClassifierObjective
from undiffuse.training.loop import Batch, train
from undiffuse.training.run import Event, Plan, Run, checkpoints, read_metrics
from undiffuse.training.state import TrainState

__all__ = ["Batch", "ClassifierObjective", "Event", "Plan", "Run", "TrainState", "checkpoints", "read_metrics", "train"]
