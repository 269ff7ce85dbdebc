"""Draws the splits of rows that have none: by picture and by normalised text, so that equal ones stay together.

Texts are equal as `hashes.hash_texts` sees it: case, width, punctuation and spacing do not count. The draw depends on
the texts and names alone, so it is the same each time.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from mclip_kit.data.hashes import hash_texts

EXACT = 20_000
"""Up to this many rows, splits have their exact shares, and equal texts of all languages stay together."""
LARGEST = 4  # a split that would be empty takes a group that is larger than its share, up to 1/LARGEST of the rows

Item = tuple[str | None, Sequence[str]]
"""The picture of a row, if it has one, and its cleaned texts."""
Hashes = np.ndarray | None
"""Of the texts of all rows, uint64, as `hash_texts` gives them; None: they are computed."""


def draw_exactly(items: Sequence[Item], shares: dict[str, float], hashes_N: Hashes = None) -> list[str]:
    """The split of each of a few rows.

    Rows with the same picture or an equal text, in whatever language, are a group, and a group is in one split. Rows
    with neither are train.

    Args:
        items: N rows.
        shares: held-out split -> its share of the rows with a picture or a text; the rest is train.
        hashes_N: of their texts.

    Example:
        >>> rows = [(None, [text]) for text in ("a dog", "A  dog.", "a cat", "two cats")]
        >>> one, same, *others = draw_exactly(rows, {"test": 0.5})
        >>> one == same, [one, same, *others].count("test")
        (True, 2)
    """
    groups = _groups(items, _keys(items, hashes_N))
    count = sum(len(rows) for rows in groups)
    room = {split: int(count * share + 1e-9) for split, share in shares.items()}
    empty = {split for split, rows in room.items() if rows}
    drawn: dict[int, str] = {}
    for rows in groups:
        split = next((split for split in room if len(rows) <= room[split]), None)
        if split:
            room[split] -= len(rows)
            empty.discard(split)
            drawn.update(dict.fromkeys(rows, split))
    for split in (split for split in shares if split in empty):
        rows = min((rows for rows in groups if rows[0] not in drawn), key=len, default=[])
        if len(rows) * LARGEST <= count:
            drawn.update(dict.fromkeys(rows, split))
    return [drawn.get(row, "train") for row in range(len(items))]


def _groups(items: Sequence[Item], keys: list[list[int]]) -> list[list[int]]:
    """The rows of each group that has a picture or a text, in an order that depends on texts and names only."""
    parents = list(range(len(items)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    first: dict[str | int, int] = {}
    for row, (own, (image, _)) in enumerate(zip(keys, items, strict=True)):
        together: list[str | int] = [*own] if image is None else [*own, image]
        for key in together:
            parents[root(row)] = root(first.setdefault(key, row))
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(len(items)):
        members[root(row)].append(row)
    numbers = {group: [key for row in rows for key in keys[row]] for group, rows in members.items()}
    for group in (group for group, known in numbers.items() if not known):  # pictures without texts
        numbers[group] = [hash_name(image) for image, _ in (items[row] for row in members[group]) if image is not None]
    return [members[group] for group in sorted(members, key=lambda g: min(numbers[g], default=0)) if numbers[group]]


def _keys(items: Sequence[Item], hashes_N: Hashes) -> list[list[int]]:
    """A number for each text of each row; equal texts have the same."""
    numbers = iter(_numbers(items, hashes_N))
    return [[number or hash_name(text) for text, number in zip(own, numbers, strict=False) if text] for _, own in items]


def _numbers(items: Sequence[Item], hashes_N: Hashes) -> list[int]:
    return (hash_texts(text for _, own in items for text in own) if hashes_N is None else hashes_N).tolist()


def draw_numbers(items: Sequence[Item], hashes_N: Hashes = None) -> np.ndarray:
    """By what the split of each row is drawn, uint64 (N,): its picture or, without one, its first text; 0: neither."""
    numbers, first, found = _numbers(items, hashes_N), 0, []
    for image, own in items:
        if image is not None:
            found.append(hash_name(image))
        else:
            found.append(next((numbers[n] or hash_name(text) for n, text in enumerate(own, first) if text), 0))
        first += len(own)
    return np.array(found, "<u8")


def hash_name(name: str) -> int:
    """A number below 2**64 for a name, or for a text without letters."""
    return int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=8).digest(), "little")


class SplitByHash:
    """Draws the splits of any number of rows, each by the hash of its picture or, without one, of its first text.

    Args:
        shares: held-out split -> its share; the rest is train.
        held_out: about the most rows of a split: in long corpora the shares fall, but rows at the end are drawn too.
            None: the shares stay.
    """

    def __init__(self, shares: dict[str, float], held_out: int | None = None) -> None:
        self._shares, self._held_out = shares, held_out
        self._seen = 0
        self._end = min(int((sum(shares.values()) + 1e-9) * 2**64), 2**64 - 1)  # of the intervals of the shares
        self._drawn: dict[int, str] = {}

    def draw(self, numbers_N: np.ndarray) -> list[str]:
        """The split of each row of a block, given what `draw_numbers` gives; most rows are train at once."""
        self._seen += len(numbers_N)
        splits = ["train"] * len(numbers_N)
        for row in np.flatnonzero((numbers_N != 0) & (numbers_N <= np.uint64(self._end))).tolist():
            splits[row] = self._split(int(numbers_N[row]))
        return splits

    def _split(self, number: int) -> str:
        if self._held_out is None:
            return _place(number, self._shares, 1.0)
        if number not in self._drawn:
            split = _place(number, self._shares, self._held_out / 5 / self._seen)
            if split == "train":
                return split
            self._drawn[number] = split
        return self._drawn[number]


def _place(number: int, shares: dict[str, float], most: float) -> str:
    """The split at a place between 0 and 1: each has an interval as wide as its share, of which `most` is used."""
    place = number / 2**64
    for split, share in shares.items():
        if place < share:
            return split if place < most else "train"
        place -= share
    return "train"


def is_in(numbers: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Which hashes occur in a sorted array, bool (N,); the hash 0 stands for nothing and never does."""
    if not len(of):
        return np.zeros(len(numbers), bool)
    places = np.searchsorted(of, numbers).clip(max=len(of) - 1)
    return np.asarray((of[places] == numbers) & (numbers != 0))


def union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The different hashes of several arrays, sorted, without 0."""
    found: np.ndarray = np.unique(np.concatenate([np.empty(0, "<u8"), *arrays]))
    return found[found != 0]
