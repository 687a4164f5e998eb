"""What the five models have in common: a loss, samples, perhaps a likelihood, and the one loop that trains them all."""

import copy
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from undiffuse.training import ema
from undiffuse.training.loop import learning_rate_factor

SIDE = 28  # pixels of a picture, each way
PIXELS = SIDE * SIDE
Images = UInt8[Tensor, "batch 1 28 28"]
PerImage = Float[Tensor, " batch"]
WARMUP = 0.02  # of the training time
CLIP = 1.0  # the largest gradient norm
EMA_WIDTH = 0.05  # of the training so far


class GenerativeModel(nn.Module, ABC):
    """A model of the pictures of a training set, with no condition."""

    evaluations: int  # calls of a network for one sample, each waiting for the one before
    learning_rate: float
    batch: int = 64  # pictures a step of training
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam

    @abstractmethod
    def loss(self, images: Images) -> Float[Tensor, ""]:
        """What training lowers, over a batch."""

    @abstractmethod
    def sample(self, n: int) -> Images:
        """n pictures, drawn with torch's generator."""

    def bits_per_dim(self, images: Images) -> dict[str, PerImage]:
        """-log2 p(picture) / 784 of each picture, or bounds of it, by name; empty where the model has no density."""
        return {}


@dataclass(frozen=True)
class Trained:
    """The averaged weights, and what they took. diverged: whether the loss became NaN or infinite, which ended it."""

    model: GenerativeModel
    steps: int
    cpu_seconds: float
    last_loss: float
    diverged: bool


def to_signal(images: Images) -> Float[Tensor, "batch 1 28 28"]:
    """Bytes 0 to 255 as floats -1 to 1."""
    return images.float() / 127.5 - 1


def to_bytes(x: Float[Tensor, "batch 1 28 28"]) -> Images:
    """The nearest bytes of floats; what lies outside [-1, 1] is clamped."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def bits(nats: Float[Tensor, "batch ..."]) -> PerImage:
    """-log p in nats, of whole pictures (B,) or of each pixel, as bits/dimension of each picture."""
    return nats.reshape(len(nats), -1).sum(1) / (PIXELS * math.log(2))


def train(model: GenerativeModel, images: Images, cpu_seconds: float, seed: int) -> Trained:
    """Adam on random batches until the CPU time of this process is spent; every model is trained by this loop.

    The learning rate rises at first and then falls to 0 by half a cosine over the time. The weights that are kept are
    an average over the last part of the training (Karras et al. 2024, section 3.1).

    CPU time, and not time by the clock, because other work on the machine must not decide who learns more.
    """
    torch.manual_seed(seed)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=model.learning_rate, betas=model.betas, fused=True)
    began, step, loss, finite = time.process_time(), 0, math.inf, True
    while finite and (spent := time.process_time() - began) < cpu_seconds:
        ticks = 10_000  # a step count, of which the time that is spent is a part
        factor = learning_rate_factor(int(ticks * spent / cpu_seconds), int(ticks * WARMUP), ticks)
        optimizer.param_groups[0]["lr"] = model.learning_rate * factor
        objective = model.loss(images[torch.randint(len(images), (model.batch,))])
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, loss = step + 1, float(objective.detach())
        finite = math.isfinite(loss)
        ema.update(average, model, step, EMA_WIDTH)
    return Trained(average.eval(), step, time.process_time() - began, loss, not finite)
