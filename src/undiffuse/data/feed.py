"""Training batches by position: batch k of a run is a pure function of the data, the seed and k."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from undiffuse.data.ahead import Ahead, workers
from undiffuse.data.augment import Augment
from undiffuse.data.dataset import Dataset
from undiffuse.data.order import Order
from undiffuse.data.pictures import Pictures
from undiffuse.noise import NoiseSource


class Feed:
    """Batches of encoded samples and their conditions, with a seed for every sample's noise.

    encode: uint8 (B, C, H, W) -> what the model sees; seed: of the run, in [0, 2^22).
    paired: conditions that are augmented as the sample is, (N, C, H, W) or (N, H, W); derive: conditions made from the
    augmented sample, by name; told: conditions that describe what the augmentation did.
    decoders: processes that decode pictures which are not in memory; by default one per processor, up to 8.
    A run that stops at any step goes on from there with the same batches, the same augmentation and the same noise,
    whoever decodes them.

    waited: seconds spent so far until samples lay in the host's memory, decoded. What is done to them is work.
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
        decoders: int | None = None,
    ) -> None:
        self.dataset, self.encode, self.augment = dataset, encode, augment
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.paired, self.derive, self.told = paired, derive, told
        self.order = Order(len(dataset), seed)
        self.waited = 0.0
        self._ahead: Ahead | None = None
        count = workers(dataset.samples, decoders)
        if count and isinstance(dataset.samples, Pictures):
            self._ahead = Ahead(dataset.samples, self.order, batch_size, count, device.type == "cuda")

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(samples (B, ...), conditions, seeds (B,)) of the given step, counted from 0."""
        began = time.monotonic()
        first = step * self.batch_size
        indices = self.order.indices(first, self.batch_size)
        pictures = self._ahead.batch(step) if self._ahead else self._pinned(self.dataset.samples[indices])
        self.waited += time.monotonic() - began
        seeds = (self.seed << 40) + torch.arange(first, first + self.batch_size)
        samples = pictures.to(self.device, non_blocking=True)
        conditions = {name: values[indices] for name, values in self.dataset.conditions.items()}
        if self.augment.draws:
            u = NoiseSource(seeds, (), self.device).uniform("augment", shape=(self.augment.draws,))
            samples = self.augment(samples, u)
            for name in self.paired:
                values = self._pinned(conditions[name]).to(self.device, non_blocking=True)
                conditions[name] = _augmented(self.augment, values, u)
            conditions |= {name: self.augment.describe(u) for name in self.told}
        conditions |= {name: make(samples) for name, make in self.derive.items()}
        return self.encode(samples), conditions, seeds

    def close(self) -> None:
        """End the processes that decode, where there are some."""
        if self._ahead:
            self._ahead.close()

    def _pinned(self, values: Tensor) -> Tensor:
        """On the way to a GPU: from memory that may move, the host would wait for the copy and all that is before."""
        return values.pin_memory() if self.device.type == "cuda" else values


def _augmented(augment: Augment, values: Tensor, u: Tensor) -> Tensor:
    if values.ndim == 3:  # a map of classes, which have no mean
        return augment(values[:, None].long(), u)[:, 0].to(values.dtype)
    return augment(values, u)
