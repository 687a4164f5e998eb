"""The training loop: a generator that yields the loss of each step and never waits for the device."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.training import ema
from undiffuse.training.state import TrainState

Batch = tuple[Tensor, dict[str, Tensor], Tensor]  # samples, conditions, seeds


def learning_rate_factor(step: int, warmup: int, total: int | None) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine down to 0 at `total` (constant while that is unknown)."""
    if step < warmup or total is None:
        return min(1.0, (step + 1) / max(1, warmup))
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def train(
    state: TrainState[Any],
    batch: Callable[[int], Batch],
    *,
    learning_rate: float,
    warmup: int,
    clip: float,
    ema_width: float,
) -> Iterator[Float[Tensor, ""]]:
    """Train from state.step to state.total, one optimizer step at a time; yields the mean loss, on the device.

    batch(step): the samples, conditions and seeds of a step. clip: the largest gradient norm, of the
    network, and of what is learned beside it. ema_width: see `ema`.
    state.total may be set while the loop runs, no later than the end of the warm-up. Between two yields the state is
    whole: it can be saved, or the loop left.
    """
    model, objective = state.model, state.objective
    model.train()
    while state.total is None or state.step < state.total:
        samples, conditions, seeds = batch(state.step)
        torch.manual_seed(int(seeds[0]))  # of the run and the position; dropout is the one user of this generator
        draws = objective.draw(model, NoiseSource(seeds, samples.shape[1:], samples.device))
        loss = objective(model, samples, conditions, draws).mean()
        loss.backward()
        norm = torch.zeros_like(loss.detach())
        for group in state.optimizer.param_groups:
            norm = norm + torch.nn.utils.clip_grad_norm_(group["params"], clip).to(norm, non_blocking=True)
            group["lr"] = learning_rate * learning_rate_factor(state.step, warmup, state.total)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        bad = ~(loss.detach() + norm).isfinite() & (state.first_bad < 0)
        state.first_bad = torch.where(bad, state.step, state.first_bad)
        ema.update(state.average, model, state.step, ema_width)
        yield loss.detach()


@torch.no_grad()
def validation_loss(state: TrainState[Any], batches: Callable[[], Iterator[Batch]]) -> dict[str, Any]:
    """The averaged weights' loss on held-out samples, with the same noise and times at every call.

    Returns {"validation_loss": mean, "validation_samples": count}.
    """
    objective = state.objective
    losses = []
    for samples, conditions, seeds in batches():
        source = NoiseSource(seeds, samples.shape[1:], samples.device)
        losses.append(objective(state.average, samples, conditions, objective.draw(state.average, source)))
    everything = torch.cat(losses)
    return {"validation_loss": float(everything.mean()), "validation_samples": len(everything)}
