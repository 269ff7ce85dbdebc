"""Long columns that are not held in memory: lines of a file, several columns as one, a subset, and a deduplicator."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.errors import DataError

BLOCK = 2**14  # rows that are made at once
RECENT = 2**18  # hashes that a Deduplicator holds in a set


class TextLines(Sequence[str]):
    """The lines of a UTF-8 file, memory-mapped; only the positions of the line ends are held in memory.

    Args:
        path: the file.
    Raises:
        DataError: the file is missing; or, when a line is read, it is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: missing; prepare it with --again")
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        ends = np.flatnonzero(self._bytes == ord("\n"))
        if len(self._bytes) and (not len(ends) or ends[-1] != len(self._bytes) - 1):
            ends = np.append(ends, len(self._bytes))
        self._starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        line = self._bytes[self._starts[index] : self._ends[index]]
        try:
            return line.tobytes().decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            raise DataError(f"{self.path} line {int(index) + 1}: not UTF-8") from None


class ConcatSequence(Sequence[Any]):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = list(parts)
        self._stops = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        index = index + len(self) if index < 0 else index
        part = int(np.searchsorted(self._stops, index, side="right"))
        if part == len(self.parts):
            raise IndexError(index)
        return self.parts[part][int(index - (self._stops[part - 1] if part else 0))]


class Subset(Sequence[Any]):
    """The given rows of a sequence, in the given order."""

    def __init__(self, source: Sequence[Any], rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._source[self._rows[index]]


def blocks_of(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of the numbers below `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class Deduplicator:
    """A set of texts that takes 8 bytes a text: their hashes, in a small set and in sorted arrays that double in size.

    Attributes:
        count: number of different texts.
    """

    def __init__(self) -> None:
        self.count = 0
        self._recent: set[int] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Add a text; whether it is new."""
        number = hash(text.encode())  # encoded: Python gives the strings `ok` and U+6B6F the same hash
        if number in self._recent or any(_contains(numbers, number) for numbers in self._sorted):
            return False
        self.count += 1
        self._recent.add(number)
        if len(self._recent) >= RECENT:
            numbers = np.fromiter(self._recent, np.int64, len(self._recent))
            while self._sorted and len(self._sorted[-1]) <= len(numbers):
                numbers = np.concatenate([self._sorted.pop(), numbers])
            self._sorted.append(np.sort(numbers))
            self._recent.clear()
        return True


def _contains(sorted_numbers: np.ndarray, number: int) -> bool:
    place = int(sorted_numbers.searchsorted(number))
    return place < len(sorted_numbers) and int(sorted_numbers[place]) == number
