"""What a trained run is worth. See docs/evaluation.md."""

from undiffuse.evaluation.base import Evaluation, evaluate
from undiffuse.evaluation.curves import Say
from undiffuse.evaluation.subject import judged
from undiffuse.judge import Judge, as_tensor

__all__ = ["Evaluation", "Judge", "Say", "as_tensor", "evaluate", "judged"]
