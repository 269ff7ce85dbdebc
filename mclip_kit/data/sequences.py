"""Long columns that are not held in memory: lines of a file, several columns as one, a subset, and a deduplicator."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.errors import DataError

READ = 1 << 22  # bytes in which line ends are looked for at once
LF = ord("\n")
BLOCK = 2**14  # rows that are made at once
SPARSE = 4  # from one wanted row in so many on, rows are not read as a run
RECENT = 2**18  # hashes that a Deduplicator holds in a set


def blocks_of(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of the numbers below `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def some(source: Sequence[Any], rows: np.ndarray) -> list[Any]:
    """The items of some rows; a `source` that can read a run of rows reads rows in ascending order at once."""
    dense = len(rows) > 0 and 0 <= rows[-1] - rows[0] < SPARSE * len(rows) and (np.diff(rows) > 0).all()
    if not dense or not hasattr(source, "run"):
        return [source[row] for row in rows]
    found: list[Any] = source.run(slice(int(rows[0]), int(rows[-1]) + 1))
    return found if len(found) == len(rows) else [found[place] for place in (rows - rows[0]).tolist()]


def part_of(rows: Sequence[Any], part: slice) -> list[Any]:
    """The items of a slice of a sequence."""
    return [rows[row] for row in range(len(rows))[part]]


def split(ids: np.ndarray, lengths_B: np.ndarray) -> list[np.ndarray]:
    """Ids of some texts, one after the other -> those of each; they are not copied."""
    ends = np.cumsum(lengths_B, dtype=np.int64)
    return [ids[start:end] for start, end in zip((ends - lengths_B).tolist(), ends.tolist(), strict=True)]


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
        size = path.stat().st_size
        self._bytes = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        dtype = np.uint32 if size < 1 << 32 else np.int64
        starts = range(0, size, READ)
        ends = [(start + np.flatnonzero(self._bytes[start : start + READ] == LF)).astype(dtype) for start in starts]
        self._ends = np.concatenate([np.empty(0, dtype), *ends, np.array([size] if self._is_open() else [], dtype)])

    def _is_open(self) -> bool:
        """Whether the last line has no end."""
        return len(self._bytes) > 0 and self._bytes[-1] != LF

    def __len__(self) -> int:
        return len(self._ends)

    def run(self, part: slice) -> list[str]:
        """Some lines, one after the other: start and stop, at least one line."""
        first = int(self._ends[part.start - 1]) + 1 if part.start else 0
        try:
            lines = self._bytes[first : int(self._ends[part.stop - 1])].tobytes().decode("utf-8")
        except UnicodeDecodeError:
            return [self[row] for row in range(part.start, part.stop)]  # which names the line
        return [line.removesuffix("\r") for line in lines.split("\n")]

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return part_of(self, index)
        index = index + len(self) if index < 0 else index
        if index < 0:
            raise IndexError(index)
        line = self._bytes[int(self._ends[index - 1]) + 1 if index else 0 : int(self._ends[index])]
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
        if isinstance(index, slice):
            return part_of(self, index)
        index = index + len(self) if index < 0 else index
        if index < 0:
            raise IndexError(index)
        part = int(np.searchsorted(self._stops, index, side="right"))
        if part == len(self.parts):
            raise IndexError(index)
        return self.parts[part][int(index - (self._stops[part - 1] if part else 0))]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts)


class Subset(Sequence[Any]):
    """The given rows of a sequence, in the given order."""

    def __init__(self, source: Sequence[Any], rows: np.ndarray | range) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return part_of(self, index) if isinstance(index, slice) else self._source[self._rows[index]]

    def __iter__(self) -> Iterator[Any]:
        for part in blocks_of(len(self)):
            yield from some(self._source, np.asarray(self._rows[part]))


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
