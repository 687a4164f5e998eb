"""The weights that measured best on the way."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undiffuse.training.state import TrainState
from undiffuse.weights import description, write


class Best:
    """The averaged weights of the step at which a number was best, in a file that says the step and the number.

    What is best so far is read from the file, so a resumed run goes on with it. A run that died after its newest
    checkpoint meets the same step again, on the CPU with the same number, which is then no better.

    path: of the file; metric: of the log's lines; higher: whether more of it is better.
    """

    def __init__(self, path: Path, metric: str, higher: bool = False) -> None:
        self.path, self.metric, self.higher = path, metric, higher

    def offer(self, state: TrainState[Any], line: Mapping[str, Any]) -> bool:
        """Keep the average as it stands if this line of the log has the number, and it is better; whether it was kept.

        Numbers of another metric or of another count of samples are not compared: the newer one stays.
        """
        value = line.get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        counts = {name: count for name, count in line.items() if name.endswith("_samples")}
        held = description(self.path)
        same = {"metric": self.metric, **counts}.items() <= held.items() and "value" in held
        if same and (value <= held["value"] if self.higher else value >= held["value"]):
            return False
        about = {"step": state.step, "metric": self.metric, "value": value, **counts}
        write(self.path, state.average.state_dict(), about)
        return True
