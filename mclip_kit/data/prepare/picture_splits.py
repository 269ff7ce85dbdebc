"""The pictures of a corpus and the splits that each is in, in little memory."""

from array import array
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np


class PictureSplits:
    """Numbers pictures in their order, and knows the splits of their captions.

    Attributes:
        numbers: name of a picture -> its number.

    Example:
        >>> pictures = PictureSplits()
        >>> pictures.add(["a", "b", "a"], ["train", "train", "test"])
        ([0, 1, 0], [0, 1], [0, 1, 2])
        >>> pictures.of(0), pictures.which(lambda own: "test" in own).tolist()
        (('train', 'test'), [True, False])
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._combinations: dict[tuple[str, ...], int] = {}
        self._all: list[tuple[str, ...]] = []
        self._of = array("I")  # number of a picture -> that of its combination of splits

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, names: Sequence[str], splits: Sequence[str]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Add pictures of some rows.

        Returns:
            The numbers of the pictures; the rows with a new one; and the rows with one that is new in its split.
        """
        known, of = self.numbers, self._of
        first = len(known)
        numbered = dict(zip(names, range(first, first + len(names)), strict=True))
        if len(numbered) == len(names) and known.keys().isdisjoint(numbered):  # as in many corpora: without a loop
            known.update(numbered)
            combinations = {split: self._combination((split,)) for split in dict.fromkeys(splits)}
            of.extend(map(combinations.__getitem__, splits))
            rows = range(len(names))
            return range(first, first + len(names)), rows, rows
        numbers, new, joined = [], [], []
        for row, name, split in zip(count(), names, splits):
            number = known.setdefault(name, len(known))
            numbers.append(number)
            if number == len(of):
                of.append(self._combination((split,)))
                new.append(row)
                joined.append(row)
            elif split not in self._all[of[number]]:
                of[number] = self._combination((*self._all[of[number]], split))
                joined.append(row)
        return numbers, new, joined

    def _combination(self, splits: tuple[str, ...]) -> int:
        if splits not in self._combinations:
            self._combinations[splits] = len(self._all)
            self._all.append(splits)
        return self._combinations[splits]

    def of(self, number: int) -> tuple[str, ...]:
        """The splits of a picture."""
        return self._all[self._of[number]]

    def leave(self, number: int, split: str) -> None:
        """Take a picture out of a split."""
        self._of[number] = self._combination(tuple(other for other in self.of(number) if other != split))

    def splits(self) -> set[str]:
        """All splits."""
        return {split for number in np.unique(self._of).tolist() for split in self._all[number]}

    def which(self, test: Callable[[tuple[str, ...]], bool]) -> np.ndarray:
        """The pictures of whose splits something is true, bool (N,)."""
        return np.array([test(own) for own in self._all], bool)[np.array(self._of)]
