"""A job that computes features, and how its inputs are split into shards and batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mclip_kit.data.readers import read_ahead, reader_count
from mclip_kit.features.index import in_key_order
from mclip_kit.features.shards import shard_name

MANY = 4  # batches for which reader processes are started


@dataclass(frozen=True)
class ExtractionJob:
    """How a tower computes features.

    Attributes:
        load: positions of inputs -> the tower's input, and which of them could not be read (counted from 0); it may
            run in a reader process.
        run: the tower's input -> items, one row after the other, float (items, width).
        sizes_N: tokens of each input, int (N,); inputs of similar size share a batch. None: each input counts as one.
        ragged: whether a row has one item per token, or one item.
        batch_items: most tokens of a batch (inputs, if there are no sizes).
        workers: reader processes that run `load`; 0: this process does; None: see `load_batches`.
    """

    load: Callable[[Sequence[int]], tuple[Any, list[int]]]
    run: Callable[[Any], Tensor]
    sizes_N: np.ndarray | None = None
    ragged: bool = False
    batch_items: int = 64
    workers: int | None = 0


def load_batches(batches: list[np.ndarray], job: ExtractionJob) -> Iterator[tuple[Any, list[int]]]:
    """What `job.load` returns for each batch of positions, computed in reader processes if the job has some.

    If it does not say how many, there are as many as this process has cores, and none for a few batches.
    """
    readers = min(reader_count(job.workers, useful=len(batches) >= MANY), len(batches))
    return (loaded for _, loaded in read_ahead(lambda part: job.load(part.tolist()), batches, readers))


def first_of_each(keys_N2: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The first position of each distinct key, in ascending order.

    Args:
        positions: those that count, int (M,), ascending.
    """
    first_N = np.zeros(len(keys_N2), bool)
    for part in in_key_order(keys_N2, positions):
        high_M = keys_N2[part, 0]
        if (high_M[1:] == high_M[:-1]).any():
            part = part[np.lexsort(keys_N2[part].T)]  # stable: positions of one key stay in order
        keys_M2, new_M = keys_N2[part], np.ones(len(part), bool)
        new_M[1:] = (keys_M2[1:] != keys_M2[:-1]).any(1)
        first_N[part[new_M]] = True
    return np.flatnonzero(first_N)


def plan_shards(
    keys_N2: np.ndarray, missing: np.ndarray, job: ExtractionJob, world_size: int, most: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names of shards and the positions of their rows; the same for every process that asks for the same keys.

    A shard has rows that are near each other in the data, so reading the data in its order reads one shard after the
    other; in a shard, those of similar size are near each other.

    Args:
        missing: positions of the rows that no shard has, int (M,).
        world_size: processes that fill the shards.
        most: items of a shard.
    """
    ragged = job.sizes_N if job.ragged else None
    whole = len(keys_N2) if ragged is None else int(ragged.sum())
    room = max(1, min(most, -(-whole // world_size)))
    if ragged is None:
        parts = iter([missing[start : start + room] for start in range(0, len(missing), room)])
    else:
        parts = split_by_items(missing, np.cumsum(ragged[missing], dtype=np.int64), room)
    for rows in parts:
        if job.sizes_N is not None:
            rows = rows[np.argsort(_narrow(job.sizes_N[rows]), kind="stable")]
        yield shard_name(keys_N2[rows]), rows


def _narrow(sizes_M: np.ndarray) -> np.ndarray:
    """The same numbers in 16 bits if they fit, which are sorted faster and in less memory."""
    return sizes_M.astype(np.uint16) if len(sizes_M) and sizes_M.min() >= 0 and sizes_M.max() < 1 << 16 else sizes_M


def items_of(job: ExtractionJob, rows: np.ndarray) -> np.ndarray:
    """Items of each row, int64 (N,).

    Args:
        rows: positions of inputs, int (N,).
    """
    return sizes_of(job, rows) if job.ragged else np.ones(len(rows), np.int64)


def sizes_of(job: ExtractionJob, rows: np.ndarray) -> np.ndarray:
    """Tokens of each row, int64 (N,); 1 if the job has no sizes."""
    return np.ones(len(rows), np.int64) if job.sizes_N is None else np.asarray(job.sizes_N[rows], np.int64)


def split_by_items(rows: np.ndarray, ends: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Split rows into runs of at most `room` items, or of one row.

    Args:
        ends: the cumulative sum of the rows' items.
    """
    start, before = 0, 0
    while start < len(rows):
        stop = max(start + 1, int(np.searchsorted(ends, before + room, side="right")))
        yield rows[start:stop]
        start, before = stop, int(ends[stop - 1])


def split_by_tokens(rows: np.ndarray, sizes: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Split rows into batches of at most `budget` tokens with padding, or of one row.

    Args:
        sizes: tokens of each row, ascending.
    """
    start = 0
    while start < len(rows):
        counts = np.arange(1, min(budget, len(rows) - start) + 1)
        fits = counts * sizes[start : start + len(counts)] <= budget
        stop = start + max(1, int(fits.sum()))
        yield rows[start:stop]
        start = stop
