"""What guidance is tested on: an elementwise network with labels, and a labelled mixture in closed form."""

import torch
from torch import nn

from undiffuse import Denoiser
from undiffuse.conditioning import Conditioner, Label
from undiffuse.denoiser import BaseDenoiser, Estimate
from undiffuse.exact import Gaussian, Mixture
from undiffuse.schedule import Cosine

X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.1, 0.3, 0.6, 0.9])
LABELS = torch.tensor([0, 2, 1, 2])
READINGS = ("x0", "noise", "v", "score", "flow")


class Toy(nn.Module):
    """Elementwise, so that results can be compared bit for bit between batches; counts the samples of its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, c_noise, vector):
        self.calls.append(len(x))
        return torch.tanh(x * c_noise[:, None, None, None] / 1000) + vector[:, :, None, None] * (1 + x)


def toy(predicts="v", seed=0, schedule=None, **options):
    """A denoiser with three labels."""
    torch.manual_seed(seed)
    conditioner = Conditioner({"label": Label(3, 3)})
    return Denoiser(Toy(), schedule or Cosine(), predicts, conditioner=conditioner, **options).requires_grad_(False)


class TwiceTheChannels(nn.Module):
    """A network that learns the variance: 2 r - 1 with r a number of the condition, beside the output."""

    learned_variance = True

    def forward(self, x, c_noise, vector):
        vector = vector[:, :, None, None]
        return torch.cat([vector * (1 + x), torch.tanh(vector).expand_as(x)], 1)


CENTRES = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -0.8]], dtype=torch.float64)
SPREADS = torch.tensor([[0.3, 0.1], [0.1, 0.2], [0.05, 0.4]], dtype=torch.float64)


class Labelled(BaseDenoiser):
    """Data of three classes, each a Gaussian: under a label that one, under none the mixture of all. Null: label 3.

    inflated: a factor of the covariances, for a worse model of the same data.
    """

    def __init__(self, schedule, inflated=1.0):
        super().__init__()
        self.experts = [Gaussian(schedule, *parts) for parts in zip(CENTRES, inflated * SPREADS, strict=True)]
        self.experts.append(Mixture(schedule, torch.ones(3), CENTRES, inflated * SPREADS))
        whole = self.experts[3]
        self.schedule, self.data_std = schedule, whole.data_std
        self.t_min, self.t_max = whole.t_min, whole.t_max

    @property
    def conditions(self):
        return ("label",)

    def encode(self, condition, drop=None):
        labels = torch.as_tensor(condition.get("label", 3)).reshape(-1)
        return {"label": labels if drop is None else labels.masked_fill(drop, 3)}

    def forward(self, x_t, t, condition=None):
        labels = (self.encode({}) if condition is None else condition)["label"].expand(len(x_t))
        estimates = torch.stack([expert(x_t, t).x0 for expert in self.experts])
        return Estimate.of_x0(x_t, estimates[labels, torch.arange(len(x_t))], self.level(t, len(x_t)))

    def log_prob(self, x, t, label=3):
        """log p(x_t | label), one label for each sample or for all."""
        labels = torch.as_tensor(label).expand(len(x))
        return torch.stack([expert.log_prob(x, t) for expert in self.experts])[labels, torch.arange(len(x))]


class Law:
    """Some law of three classes given x_t, for tests of what a classifier's guidance promises whatever it says."""

    classes = ("0", "1", "2")
    schedule = Cosine()

    def log_prob(self, x, t):
        features = torch.sin(2 * x.flatten(1))
        weight = torch.linspace(-1, 1, 3 * features.shape[1], dtype=x.dtype, device=x.device).reshape(-1, 3)
        return (features @ weight).log_softmax(1)
