"""The clock of a training run: what is measured on the way takes no time of it."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds, as `time.monotonic` has them, less those in which the clock was stopped.

    A budget in minutes, the pace and the images per second are those of training; metrics may take as long again.
    """

    def __init__(self) -> None:
        self.away = 0.0

    def now(self) -> float:
        """The seconds on it."""
        return time.monotonic() - self.away

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It stands still inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.away += time.monotonic() - began
