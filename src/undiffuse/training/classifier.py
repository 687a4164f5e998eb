"""The objective of a classifier that knows noise, for guidance."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undiffuse.denoiser import Sample
from undiffuse.guidance import NoisyClassifier
from undiffuse.noise import NoiseSource
from undiffuse.objective import Loss, PerSample, StratifiedTime, TimeLaw
from undiffuse.prediction import Level
from undiffuse.schedule import along_batch


class ClassifierDraws(NamedTuple):
    """The randomness of one evaluation, per sample: times (B,) float64 and noise (B, ...)."""

    t: PerSample
    noise: Sample


class ClassifierObjective(Loss):
    """Cross entropy under noise: -log p(y | x_t, t) at x_t = alpha x_0 + sigma noise (Dhariwal & Nichol 2021).

    name: of the condition that is the class y; times: the law of t.
    """

    def __init__(self, name: str = "label", times: TimeLaw | None = None) -> None:
        super().__init__()
        self.name, self.times = name, StratifiedTime() if times is None else times

    def draw(self, classifier: NoisyClassifier, source: NoiseSource) -> ClassifierDraws:
        """The draws of a batch from its samples' own streams."""
        # drawn on the host, where times live, so that nothing waits for the device
        u = NoiseSource(source.seeds, (), "cpu", torch.float64).uniform("time")
        t = self.times.times(u, classifier.schedule, classifier.t_min, classifier.t_max)
        return ClassifierDraws(t, source.normal("noise"))

    def forward(
        self, classifier: NoisyClassifier, x0: Sample, condition: Mapping[str, Tensor], draws: ClassifierDraws
    ) -> Float[Tensor, " batch"]:
        """The loss of each sample of x0 (B, ...), in nats, shape (B,)."""
        level = Level(classifier.schedule, draws.t)
        x_t = along_batch(level.alpha, x0) * x0 + along_batch(level.sigma, x0) * draws.noise
        labels = condition[self.name].to(x0.device, non_blocking=True)
        return F.nll_loss(classifier.log_prob(x_t, draws.t), labels, reduction="none")
