"""Worker processes: what they do first, and work that is given to them in order and in bounded amounts."""

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager
from threading import Thread
from typing import Any

from mclip_kit.errors import DataError

OBJECTS = 2**17  # new ones after which Python looks for cycles of objects


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


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Python looks for cycles of objects seldom, which takes a third of the time where many rows have none."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def cores(workers: int | None) -> int:
    """The number of processes; None: as many as CPU cores."""
    return workers or os.cpu_count() or 1


_work: Callable[[Any], Any]
"""What a worker process does with each item."""


def _start(make: Callable[..., Callable[[Any], Any]], given: tuple[Any, ...]) -> None:
    global _work
    exit_with_parent()
    _work = make(*given)


def _do(item: Any) -> Any:
    return _work(item)


@contextmanager
def processes(
    workers: int, make: Callable[..., Callable[[Any], Any]], *given: Any
) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Worker processes that do the same to each item; as a context, a function from items to results in their order.

    At most three items a process are on the way, so that memory is bounded.

    Args:
        workers: number of processes.
        make: called once in each process, with `given`; it returns the function that is called with each item.
    Raises:
        DataError: a process was killed.
    """
    from concurrent.futures import ProcessPoolExecutor  # imported here: small inputs need no multiprocessing

    with ProcessPoolExecutor(workers, initializer=_start, initargs=(make, given)) as pool:
        try:
            yield lambda items: map_ahead(pool, 2 * workers, _do, items)
        except BrokenExecutor:
            raise DataError(
                "a worker process was killed, probably because memory ran out; prepare again with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def map_ahead(pool: Executor, ahead: int, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """As pool.map, but at most `ahead` items are read in advance; pool.map would read all of them at once.

    An error in reading an item is raised after the results of the items before it.
    """
    waiting: deque[Any] = deque()
    wrong: Exception | None = None
    rest = iter(items)
    while wrong is None:
        try:
            item = next(rest)
        except StopIteration:
            break
        except Exception as error:
            wrong = error
            break
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if wrong:
        raise wrong
