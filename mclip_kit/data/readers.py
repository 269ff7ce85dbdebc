"""Reader processes: inputs are read ahead of their use (pictures decoded, texts tokenised), and come in order.

A reader is forked, so it has all that this process has, such as mapped columns, without a copy. It never uses a GPU.
"""

import multiprocessing
import os
import select
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mclip_kit.data.parcels import Lost, Parcel
from mclip_kit.engine.local import STOPS, held_signals
from mclip_kit.errors import DataError, MclipError, first_line

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 16  # readers that a process starts unless it is told how many
AHEAD = 4  # results that wait, or that readers work on; one a reader where there are more readers


def reader_count(asked: int | None, useful: bool) -> int:
    """The number of readers of a process.

    >>> reader_count(3, useful=False), reader_count(None, useful=False)
    (3, 0)

    Args:
        asked: by the user; None: as many as this process's share of the CPU cores, at most 16, if they are useful.
        useful: whether reading takes longer than sending what was read from one process to another.
    Raises:
        DataError: readers are asked for, and the system cannot fork.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods() and hasattr(os, "sched_getaffinity")  # Linux
    if asked and not can_fork:
        raise DataError(f"workers: {asked}: reader processes need Linux; leave the key out, or set it to 0")
    if asked is not None or not useful or not can_fork:
        return asked or 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST, len(os.sched_getaffinity(0)) // processes))


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], readers: int, pin: bool = False
) -> Generator[tuple[Item, Result]]:
    """Each item with what `read` gives for it, in their order; four results, or one a reader, are made in advance.

    >>> list(read_ahead(len, ["a", "bc"], readers=0))
    [('a', 1), ('bc', 2)]

    Args:
        read: runs in a reader; what it changes stays there, and an error that it raises is raised here.
        items: asked for one by one, by this process.
        readers: processes; 0: this one reads.
        pin: put tensors into memory from which a GPU can fetch them.
    Raises:
        DataError: a reader was killed.
    """
    if not readers:
        for item in items:
            yield item, read(item)
        return
    sent: deque[Item] = deque()
    parcels: Iterator[Parcel] | None = None
    lost = ""
    try:
        with _end_of_readers() as start:
            parcels = _parcels(_Inputs(read), _noted(items, sent), readers, start, pin)
            for parcel in parcels:
                yield sent.popleft(), parcel.open()
    except (RuntimeError, Lost) as error:
        if not isinstance(error, Lost) and not str(error).startswith("DataLoader worker (pid"):
            raise
        lost = first_line(error)
    finally:
        parcels = None  # its queues end here, and not when the last reference to an error goes
    if lost:
        raise DataError(
            f"a reader process was killed, perhaps because the memory is full ({lost}); start again with fewer than "
            f"{readers}, or with none: train --resume --set workers=0, embed --workers 0"
        )


def _noted(items: Iterable[Item], sent: deque[Item]) -> Iterator[Item]:
    for item in items:
        sent.append(item)
        yield item


def _parcels(
    inputs: "_Inputs", items: Iterator[Any], readers: int, start: Callable[[int], None], pin: bool
) -> Iterator[Parcel]:
    """Start the readers; what they send, in the order of the items."""
    loader = DataLoader(
        inputs,
        batch_size=None,
        sampler=items,
        num_workers=readers,
        prefetch_factor=-(-AHEAD // readers),
        worker_init_fn=start,
        multiprocessing_context="fork",
        pin_memory=pin,
        generator=torch.Generator(),
    )
    with held_signals(), _kept_handler():
        return iter(loader)


class _Inputs(Dataset[Any]):
    """What is read for an item, ready to be sent."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __getitem__(self, item: Any) -> Parcel:
        try:
            return Parcel(self._read(item))
        except Exception as error:
            if not isinstance(error, MclipError):
                error.add_note(f"in a reader process:\n{traceback.format_exc()}")
            return Parcel(error)


@contextmanager
def _end_of_readers() -> Iterator[Callable[[int], None]]:
    """What a reader does first; readers end when the block does, or with this process, even if it is killed."""
    watched, end = os.pipe()
    stop = Finalize(None, os.write, (end, b"x"), exitpriority=1)  # at the latest before this process waits for them
    try:
        yield partial(_start, watched, end)
    finally:
        stop()
        os.close(end)
        os.close(watched)


def _start(watched: int, end: int, number: int) -> None:
    os.close(end)
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers would warn that they were forked
    threading.Thread(target=_watch, args=(watched,), daemon=True).start()


def _watch(watched: int) -> None:
    select.select([watched], [], [])  # not read: every reader is to see it
    os._exit(0)


@contextmanager
def _kept_handler() -> Iterator[None]:
    """Inside, readers are forked; the death of one will interrupt nothing here.

    DataLoader would raise it wherever this process is; it also sees it when it waits for that reader.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
