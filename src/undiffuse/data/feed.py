"""Training batches by position: batch k of a run is a pure function of the data, the seed and k."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from undiffuse.data.augment import Augment
from undiffuse.data.dataset import Dataset
from undiffuse.data.order import Order
from undiffuse.noise import NoiseSource


class Feed:
    """Batches of encoded samples and their conditions, with a seed for every sample's noise.

    encode: uint8 (B, C, H, W) -> what the model sees; seed: of the run, in [0, 2^22).
    paired: conditions that are augmented as the sample is, (N, C, H, W) or (N, H, W); derive: conditions made from the
    augmented sample, by name; told: conditions that describe what the augmentation did.
    A run that stops at any step goes on from there with the same batches, the same augmentation and the same noise.
    """

    def __init__(
        self,
        dataset: Dataset,
        encode: Callable[[Tensor], Tensor],
        augment: Augment,
        batch_size: int,
        seed: int,
        device: torch.device,
        paired: Sequence[str] = (),
        derive: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({}),
        told: Sequence[str] = (),
    ) -> None:
        self.dataset, self.encode, self.augment = dataset, encode, augment
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.paired, self.derive, self.told = paired, derive, told
        self.order = Order(len(dataset), seed)

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(samples (B, ...), conditions, seeds (B,)) of the given step, counted from 0."""
        first = step * self.batch_size
        indices = self.order.indices(first, self.batch_size)
        seeds = (self.seed << 40) + torch.arange(first, first + self.batch_size)
        samples = _sent(self.dataset.samples[indices], self.device)
        conditions = {name: values[indices] for name, values in self.dataset.conditions.items()}
        if self.augment.draws:
            u = NoiseSource(seeds, (), self.device).uniform("augment", shape=(self.augment.draws,))
            samples = self.augment(samples, u)
            for name in self.paired:
                conditions[name] = _augmented(self.augment, _sent(conditions[name], self.device), u)
            conditions |= {name: self.augment.describe(u) for name in self.told}
        conditions |= {name: make(samples) for name, make in self.derive.items()}
        return self.encode(samples), conditions, seeds


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device, without a wait: for a large copy CUDA waits unless it comes from pinned memory."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def _augmented(augment: Augment, values: Tensor, u: Tensor) -> Tensor:
    if values.ndim == 3:  # a map of classes, which have no mean
        return augment(values[:, None].long(), u)[:, 0].to(values.dtype)
    return augment(values, u)
