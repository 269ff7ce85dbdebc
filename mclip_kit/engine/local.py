"""Worker processes of this machine: what they do first, and work that is given to them."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread, current_thread, main_thread
from typing import Any

from mclip_kit.engine.base import Engine, Make, Map, map_ahead
from mclip_kit.errors import DataError

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that this process handles; what it has started ends with it."""


@contextmanager
def held_signals() -> Iterator[None]:
    """Inside, processes are forked, and signals that stop a program wait until the end.

    What their handlers raise would be lost in what Python does after a fork. To block signals is not enough: the system
    gives one to any thread, and Python then calls its handler in the main thread.
    """
    if current_thread() is not main_thread():  # no handler is called here
        yield
        return
    came: list[int] = []
    before = {stop: signal.signal(stop, lambda number, _: came.append(number)) for stop in STOPS}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, signal.SIG_DFL if handler is None else handler)
        for number in came[:1]:
            signal.raise_signal(number)


def exit_with_parent() -> None:
    """End this process when its parent ends, even if the parent is killed; leave Ctrl-C to the parent.

    SIGTERM, which the parent handles, ends a worker as it ends any program.

    A worker without its parent would wait for ever, and keep the lock of the folder that was being prepared.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    from multiprocessing import parent_process  # imported here: only workers need multiprocessing

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_work: Any
"""What a worker process does with each item."""


def _start(make: Make, given: tuple[Any, ...]) -> None:
    global _work
    exit_with_parent()
    _work = make(*given)


def _do(item: Any) -> Any:
    return _work(item)


@dataclass(frozen=True)
class Processes:
    """The local engine: processes of this machine. At most three items a process are on the way.

    >>> from functools import partial
    >>> with Processes(2).map(partial, pow, 2) as power_of_two:
    ...     list(power_of_two([1, 2, 3]))
    [2, 4, 8]

    Attributes:
        workers: number of processes.
    """

    workers: int = 1

    @property
    def alone(self) -> bool:
        """See `Engine`."""
        return self.workers == 1

    @contextmanager
    def map(self, make: Make, *given: Any) -> Iterator[Map]:
        """See `Engine.map`."""
        from concurrent.futures import ProcessPoolExecutor  # imported here: small inputs need no multiprocessing

        with ProcessPoolExecutor(self.workers, initializer=_start, initargs=(make, given)) as pool:
            try:
                with held_signals():
                    pool.submit(os.getpid)  # the first work starts all processes
                yield partial(map_ahead, lambda item: pool.submit(_do, item), 2 * self.workers)
            except BrokenExecutor:
                raise DataError(
                    "a worker process was killed, probably because memory ran out; prepare again with fewer --workers"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def engine_of(workers: int | Engine | None) -> Engine:
    """An engine as it is; a number: so many processes of this machine; None: as many as CPU cores."""
    return Processes(workers or os.cpu_count() or 1) if workers is None or isinstance(workers, int) else workers
