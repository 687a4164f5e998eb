"""Training: the state, the loop, and a run in a folder."""

from undiffuse.training.loop import train
from undiffuse.training.run import Event, Plan, Run, checkpoints, read_metrics
from undiffuse.training.state import TrainState

__all__ = ["Event", "Plan", "Run", "TrainState", "checkpoints", "read_metrics", "train"]
