"""A run under evaluation: its model and data, the judge, and the samples that the main numbers are of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import undiffuse
from undiffuse.data import Split
from undiffuse.evaluation.curves import Timed
from undiffuse.judge import Judge
from undiffuse.pipeline import Pipeline


@dataclass
class Subject:
    """The run of a folder, with n samples drawn from the seeds 0 to n - 1 under `condition`."""

    run: Path
    model: Pipeline
    split: Split
    judge: Judge
    condition: dict[str, Any]
    images: Tensor
    samples: Timed

    @property
    def guidance(self) -> float:
        """The scale of the samples."""
        return float(self.model.sampling["guidance"]) if self.condition else 1.0

    @property
    def labels(self) -> Tensor | None:
        """The classes that the samples were asked for."""
        found = self.condition.get(self.model.label or "")
        return found if judged(self.model) else None

    def protocol(self) -> dict[str, Any]:
        """How the samples were made and what they were measured against: it stands beside every number."""
        sampling = self.model.sampling
        return {
            "sampler": sampling["sampler"],
            "grid": sampling["grid"],
            "steps": sampling["steps"],
            "evaluations": self.samples.evaluations,
            "guidance": self.guidance,
            "seeds": f"0-{len(self.images) - 1}",
            "reference": self.judge.reference_name,
            "reference_key": self.judge.reference_key,
            "undiffuse": undiffuse.__version__,
        }


def judged(model: Pipeline) -> str | None:
    """The name of the label that samples are judged by: the model's first, where it has two classes or more."""
    return model.label if len(model.classes) > 1 else None
