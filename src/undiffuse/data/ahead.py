"""Batches that other processes decode ahead of training."""

import atexit
import itertools
import signal
import weakref
from collections.abc import Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from undiffuse.data.dataset import Samples
from undiffuse.data.order import Order
from undiffuse.data.pictures import Pictures, processors
from undiffuse.errors import InputError

MOST_WORKERS = 8  # that are started unasked
GRACE_SECONDS = 30


def workers(samples: Samples, asked: int | None) -> int:
    """How many processes decode: those asked for, else one per processor up to 8; none for samples in memory."""
    if not isinstance(samples, Pictures):
        return 0
    return min(MOST_WORKERS, processors()) if asked is None else asked


class Ahead:
    """Batches of pictures by step, each decoded by one of `workers` processes, a few steps ahead of the one asked for.

    Steps that are asked for one after the other come from the same processes; another step starts them anew there.

    pin: whether batches come in pinned memory, from where a GPU copies them while the host goes on.
    """

    def __init__(self, pictures: Pictures, order: Order, batch_size: int, workers: int, pin: bool) -> None:
        self._batches = _Batches(pictures, order, batch_size)
        self._workers, self._pin = workers, pin
        self._running: Iterator[Tensor | str] | None = None
        self._step = 0  # the next one of the running processes
        atexit.register(_close, weakref.ref(self))  # before Python's own end of processes, which these outlive a while

    def batch(self, step: int) -> UInt8[Tensor, "batch channels height width"]:
        """The samples of a step.

        Raises: InputError naming a file that cannot be read, and where a process was killed.
        """
        if self._running is None or step != self._step:
            self.close()
            self._running, self._step = self._started(step), step
        try:
            found = next(self._running)
        except (RuntimeError, EOFError, OSError) as error:  # the latter two where it ended while handing on a batch
            self.close()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"a process that decodes pictures ended: {reason}; data.workers=0 does without") from error
        if isinstance(found, str):
            self.close()
            raise InputError(found)
        self._step += 1
        return found

    def close(self) -> None:
        """End the processes."""
        self._running = None  # the iterator ends and joins them where it is deleted

    def _started(self, step: int) -> Iterator[Tensor | str]:
        loader = DataLoader(
            self._batches,
            batch_size=None,  # an item is a batch already
            sampler=itertools.count(step),  # never exhausted: the processes live as long as the training
            num_workers=self._workers,
            pin_memory=self._pin,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        child = getattr(signal, "SIGCHLD", None)  # not on Windows
        before = child and signal.getsignal(child)
        running = iter(loader)
        if child and before is not None and signal.getsignal(child) is not before:
            # torch raises where the end of a process finds it, be it in the midst of a checkpoint; `next` sees it too
            signal.signal(child, before)
        return running


class _Batches(Dataset[Tensor | str]):
    """Batch k of a run, by k; or what is wrong with it, because an exception would arrive as a traceback."""

    def __init__(self, pictures: Pictures, order: Order, batch_size: int) -> None:
        self._pictures, self._order, self._batch_size = pictures, order, batch_size

    def __getitem__(self, step: int) -> Tensor | str:
        try:
            return self._pictures[self._order.indices(step * self._batch_size, self._batch_size)]
        except InputError as error:
            return str(error)


def _close(reference: "weakref.ref[Ahead]") -> None:
    ahead = reference()
    if ahead is not None:
        ahead.close()


def _outlive_signals(worker: int) -> None:
    """Ctrl-C in a terminal and the end of a service reach all processes, and it is the main one's to save and to end.

    Until then it may wait for a batch. Should it never come to an end, these do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows, where nobody sends SIGTERM either
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
