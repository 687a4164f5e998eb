"""Training: the state, the loop, and a run in a folder."""

from undiffuse.training.best import Best
from undiffuse.training.classifier import ClassifierObjective
from undiffuse.training.levels import loss_by_level
from undiffuse.training.loop import Batch, train
from undiffuse.training.run import Event, Plan, Run, checkpoints, read_metrics
from undiffuse.training.state import TrainState
from undiffuse.training.track import TRACKERS, Tracker, check_tracker, tracking

__all__ = [
    "TRACKERS", "Batch", "Best", "ClassifierObjective", "Event", "Plan", "Run", "Tracker", "TrainState",
    "check_tracker", "checkpoints", "loss_by_level", "read_metrics", "tracking", "train",
]  # fmt: skip
