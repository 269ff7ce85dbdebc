"""Long columns: lines of a text file, several columns read as one, and which values came before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.errors import DataError

RECENT = 2**18  # hashes that a Deduplicator holds in a set


class Lines(Sequence[str]):
    """The lines of a UTF-8 file, memory-mapped; only the line starts are held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: missing; prepare the corpus again")
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
    """Some rows of a sequence, in a given order."""

    def __init__(self, source: Sequence[Any], rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._source[self._rows[index]]


class Deduplicator:
    """Texts that came before, at 8 bytes each: their hashes, in arrays that double and a small set before them.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        self.count = 0
        self._recent: set[int] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Whether a text is new; it is not from then on."""
        number = hash(text.encode())  # of the string itself, `ok` and a Japanese tooth have the same
        if number in self._recent or any(_holds(numbers, number) for numbers in self._sorted):
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


def _holds(numbers: np.ndarray, number: int) -> bool:
    place = int(numbers.searchsorted(number))
    return place < len(numbers) and int(numbers[place]) == number
