"""What an engine is: it does the same to each of many items, in several processes, and gives the results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

Make = Callable[..., Callable[[Any], Any]]
"""Called once in each process; it returns the function that is called with each item. A class with `__call__`, or
`partial`."""
Map = Callable[[Iterable[Any]], Iterator[Any]]
"""From items to results in their order; few items are taken in advance, so that memory is bounded."""


class Engine(Protocol):
    """Runs work in several processes.

    Attributes:
        workers: number of processes.
        alone: whether this process should do the work itself, because there would be one other.
    """

    @property
    def workers(self) -> int: ...

    @property
    def alone(self) -> bool: ...

    def map(self, make: Make, *given: Any) -> AbstractContextManager[Map]:
        """The processes as a context, which gives a function from items to results.

        Args:
            make: called once in each process, with `given`.
        Raises:
            DataError: a process was killed, and its work cannot be done again.
        """
        ...


def threads(engine: Engine) -> int:
    """Threads of this process for work that is too small for others: a core each."""
    return min(engine.workers, os.cpu_count() or 1)


def map_ahead(submit: Callable[[Any], Any], ahead: int, items: Iterable[Any]) -> Iterator[Any]:
    """As an executor's `map`, but at most `ahead` items are read in advance; that one would read all of them at once.

    An error in reading an item is raised after the results of the items before it.

    Args:
        submit: starts the work on an item, and returns at once; its `result()` waits for the result.
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
        waiting.append(submit(item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if wrong:
        raise wrong
