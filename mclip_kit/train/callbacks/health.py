"""A line when training waits and waits: for a disk, a network or another process that does not answer."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.checkpoint import TrainState

TIMES, LEAST = 10, 60.0  # of the median step; seconds
KNOWN = 5  # steps whose time must be known first
EVERY = 1.0  # seconds between two looks


class Health(Callback):
    """Says once that no step has ended for `TIMES` the median of the last steps, and when it has ended after all.

    Evaluations do not count. One thread of the main process looks, until the last step or an error.
    """

    def __init__(self, at: Progress, state: TrainState) -> None:
        super().__init__(at, state)
        self._took: deque[float] = deque(maxlen=100)
        self._since: float | None = None  # when the last step ended; None: nothing is waited for
        self._told = False
        self._ended = threading.Event()

    def before_stage(self) -> None:
        """Begin to look."""
        self._since = time.monotonic()
        if self.at.run.is_main:
            threading.Thread(target=_watch, args=(weakref.ref(self), self._ended), daemon=True).start()

    def after_step(self) -> None:
        """Remember how long the step took."""
        now = time.monotonic()
        if self._since is not None:
            self._took.append(now - self._since)
            if self._told:
                self.at.log(f"it went on after {now - self._since:.0f} s")
        self._since, self._told = now, False

    @contextmanager
    def weights_to_evaluate(self) -> Iterator[None]:
        """Inside, no step is waited for."""
        self._since = None
        try:
            yield
        finally:
            self._since = time.monotonic()

    def close(self) -> None:
        """Look no more."""
        self._since = None
        self._ended.set()

    def look(self) -> None:
        """Say that a step takes very long, once."""
        since, took = self._since, list(self._took)
        if since is None or self._told or len(took) < KNOWN:
            return
        waited, usual = time.monotonic() - since, median(took)
        if waited > max(LEAST, TIMES * usual):
            self._told = True
            self.at.log(
                f"no step has ended for {waited:.0f} s, the median takes {usual:.2g} s; look at the disks of "
                "the data and the features, and at the other processes"
            )


def _watch(health: "weakref.ref[Health]", ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        known = health()
        if known is None:
            return
        known.look()
        del known  # else an error's stage would stay for ever
