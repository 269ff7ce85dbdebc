"""Opens arrays of NumPy's format."""

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
