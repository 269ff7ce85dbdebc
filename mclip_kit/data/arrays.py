"""Opens arrays of NumPy's format; runs of adjacent entries."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.errors import first_line


def open_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped.

    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is damaged, or has Python objects.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # the header is an expression of Python: tokenize and ast raise their own
        raise ValueError(f"not an array of NumPy: {first_line(error)}") from None
    return array


class LateArray:
    """Rows of an array that is opened when the first of them is asked for.

    Args:
        count: number of rows.
        open: gives the array.
    """

    def __init__(self, count: int, open: Callable[[], np.ndarray]) -> None:
        self._count, self._open = count, open

    @cached_property
    def _array(self) -> np.ndarray:
        return self._open()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._array.shape

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> Any:
        return self._array[rows]


def spans(starts_R: np.ndarray, lengths_R: np.ndarray) -> list[tuple[int, int]]:
    """Start and length of each run of adjacent entries, which are one read."""
    if len(starts_R) == 1:
        return [(int(starts_R[0]), int(lengths_R[0]))]
    new_R = np.append(True, starts_R[1:] != starts_R[:-1] + lengths_R[:-1])
    lengths = np.add.reduceat(lengths_R, np.flatnonzero(new_R))
    return list(zip(starts_R[new_R].tolist(), lengths.tolist(), strict=True))


def numbers_from(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers start .. start + length - 1 of each pair, one pair after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
