"""What the next shuffle window reads is brought from object storage while the current one trains."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np

from mclip_kit.features.copies import brought
from mclip_kit.storage import SIZE

Windows = list[list[np.ndarray]]
"""Batches of rows, window by window."""
Files = Callable[[np.ndarray], Iterable[Path]]
"""Rows -> the copies that their batches read."""


def bring_ahead(windows: Windows, start: int, files: Files, log: Callable[[str], None]) -> Iterator[np.ndarray]:
    """The batches of an epoch from one on, in their order, as without this function.

    What a window reads is here when its first batch comes. A thread brings what the next one reads, and nothing more;
    what cannot be brought is raised before the first batch that needs it.

    Args:
        start: number of the first batch.
        log: takes a line, once, if two windows are larger than all copies may be.
    Raises:
        StorageError: a file cannot be brought.
    """
    left = _from(windows, start)
    stopped = Event()
    with ThreadPoolExecutor(1, "read-ahead") as thread:

        def bring(number: int) -> Future[bool]:
            return thread.submit(_bring, [_rows(window) for window in left[number : number + 2]], files, stopped)

        try:
            thread.submit(_bring, [_rows(window) for window in left[:1]], files, stopped).result()
            small = False
            for number, window in enumerate(left):
                ahead = bring(number)
                yield from window
                if not ahead.result() and not small:
                    small = True
                    log(
                        f"shuffle_window: two windows do not fit into {SIZE}, so copies are brought more than once; "
                        "lower the one or raise the other"
                    )
        finally:
            stopped.set()


def _from(windows: Windows, start: int) -> Windows:
    """The windows without the first batches."""
    left = []
    for window in windows:
        if len(window) > start:
            left.append(window[start:])
        start = max(0, start - len(window))
    return left


def _rows(window: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(window)


def _bring(windows: list[np.ndarray], files: Files, stopped: Event) -> bool:
    """Bring what the rows of some windows read; whether all of it is here then.

    What is here counts as used now, so that it stays: the next window makes room by removing what came before both.
    """
    paths = list(dict.fromkeys(path for rows in windows for path in files(rows)))
    for path in paths:
        if stopped.is_set():
            return True
        brought(path)
    missing = next((path for path in paths if not path.exists()), None)
    return missing is None or not brought(missing).exists()  # the second: it is gone there, which its reader reports
