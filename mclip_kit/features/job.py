"""How a tower computes features, and in which order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class ExtractionJob:
    """How a tower computes features.

    Attributes:
        load: positions -> what the tower takes, and which of them could not be read (counted from 0); may run in
            another process.
        run: what the tower takes -> items, one row's after the other, float (items, width).
        sizes_N: tokens of each input; inputs of similar size are computed together.
        ragged: whether a row has as many items as tokens, or one.
        batch_items: tokens (or inputs, without sizes) of a batch.
        workers: processes that load.
    """

    load: Callable[[Sequence[int]], tuple[Any, list[int]]]
    run: Callable[[Any], Tensor]
    sizes_N: np.ndarray | None = None
    ragged: bool = False
    batch_items: int = 64
    workers: int = 0


class _Inputs(torch.utils.data.Dataset[Any]):
    """What the tower takes, batch by batch, for worker processes."""

    def __init__(self, batches: list[np.ndarray], load: Callable[[Sequence[int]], Any]) -> None:
        self._batches, self._load = batches, load

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:
        return self._load(self._batches[number].tolist())


def loaded(batches: list[np.ndarray], work: ExtractionJob) -> Iterator[Any]:
    """What the tower takes of each batch, and what of it could not be read; in other processes, if the work says so."""
    workers, inputs = min(work.workers, len(batches)), _Inputs(batches, work.load)
    if not workers:
        return (inputs[number] for number in range(len(inputs)))
    return iter(DataLoader(inputs, batch_size=None, num_workers=workers, generator=torch.Generator()))


def first_of_each(keys_N2: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The first position of each distinct key, in order."""
    order = positions[np.lexsort(keys_N2[positions].T)]  # stable: positions of one key stay in order
    keys = keys_N2[order]
    new = np.ones(len(order), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(1)
    return np.sort(order[new])


def cut(rows: np.ndarray, ends: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Runs of rows that have at most `room` items together, and at least one row."""
    start, before = 0, 0
    while start < len(rows):
        stop = max(start + 1, int(np.searchsorted(ends, before + room, side="right")))
        yield rows[start:stop]
        start, before = stop, int(ends[stop - 1])


def batches(rows: np.ndarray, sizes: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Runs of rows, sorted by size, whose padded batch has at most `budget` tokens, and at least one row."""
    start = 0
    while start < len(rows):
        counts = np.arange(1, min(budget, len(rows) - start) + 1)
        fits = counts * sizes[start : start + len(counts)] <= budget
        stop = start + max(1, int(fits.sum()))
        yield rows[start:stop]
        start = stop
