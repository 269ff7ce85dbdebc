"""Writes the parallel text of a corpus, a file a side, while its rows are read."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mclip_kit.data.bitext import raw_text
from mclip_kit.data.prepare.block import Block
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.data.prepare.hashed_text import HashedText

Pair = tuple[str, str, str]
"""(split, source language, target language)."""


class ParallelText:
    """Pairs the texts of rows and writes those that are kept.

    Attributes:
        pairs: parallel sides, in the order of their first sentences -> number of sentences.

    Args:
        folder: where the files go.
        languages: of the corpus; the first one is the source of all pairs.
        cleaner: says which pairs are kept, and counts the others.
        stack: closes the files.
    """

    def __init__(self, folder: Path, languages: Sequence[str], cleaner: Cleaner, stack: ExitStack) -> None:
        self._folder, self._languages, self._cleaner, self._stack = folder, languages, cleaner, stack
        self.pairs: Counter[Pair] = Counter()
        self._sides: dict[Pair, tuple[HashedText, HashedText]] = {}

    def add(self, rows: Block, splits: list[str]) -> list[int]:
        """Pair the n-th text in the first language with that in each other; how many pairs of each row are kept."""
        found: dict[Pair, list[tuple[int, int]]] = {}
        kept = self._pair_alike(rows, splits, found)
        for split, parallel, own in zip(splits, rows.parallel, rows.texts_of_rows(), strict=True) if not kept else ():
            kept.append(self._pair_row(rows, split, own, found) if parallel else 0)
        for pair, numbers in found.items():
            files = self._sides.get(pair) or self._new_pair(pair)
            for file, side in zip(files, zip(*numbers, strict=True), strict=True):
                file.write([rows.texts[number] + "\n" for number in side], rows.hashes_N[list(side)])
            self.pairs[pair] += len(numbers)
        return kept

    def _pair_alike(self, rows: Block, splits: list[str], found: dict[Pair, list[tuple[int, int]]]) -> list[int]:
        """As `_pair_row`, of all rows at once; empty if they differ in their languages, or not all pairs are kept."""
        first, *others = self._languages
        size, rules = rows.counts[0] if rows.rows else 0, self._cleaner.rules
        own = [*rows.languages[:size]]
        if sorted(own) != sorted(self._languages) or [*rows.languages] != own * rows.rows or not all(rows.parallel):
            return []
        if rules.ratio or rules.duplicates or any(rows.reasons) or rows.counts.count(size) < rows.rows:
            return []
        for split in dict.fromkeys(splits):
            starts = [size * row for row, of in enumerate(splits) if of == split]
            for other in others:
                left, right = own.index(first), own.index(other)
                found[split, first, other] = [(start + left, start + right) for start in starts]
        return [len(others)] * rows.rows

    def _pair_row(self, rows: Block, split: str, own: range, found: dict[Pair, list[tuple[int, int]]]) -> int:
        """Find the pairs of a row's texts that are kept, by the numbers of their texts, and count them."""
        first, *others = self._languages
        by_language: dict[str, list[int]] = {}
        kept = 0
        for number in own:
            by_language.setdefault(rows.languages[number], []).append(number)
        for other in others:
            left, right = by_language.get(first, []), by_language.get(other, [])
            if left and right and len(left) != len(right):
                self._cleaner.counts["texts without a translation at their place"] += abs(len(left) - len(right))
            for both in zip(left, right, strict=False):
                if self._keeps_pair(rows, *both):
                    found.setdefault((split, first, other), []).append(both)
                    kept += 1
        return kept

    def _keeps_pair(self, rows: Block, *sides: int) -> bool:
        source, target = ((rows.languages[number], rows.texts[number]) for number in sides)
        return self._cleaner.keeps_pair(source, target, rows.reasons[sides[0]] or rows.reasons[sides[1]])

    def _new_pair(self, pair: Pair) -> tuple[HashedText, HashedText]:
        prefixes = side_prefixes(self._folder, pair)
        left, right = (self._stack.enter_context(HashedText(raw_text(prefix))) for prefix in prefixes)
        self._sides[pair] = left, right
        return self._sides[pair]


def side_prefixes(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """The paths of a pair's two sides without suffix, as fairseq names them: `SPLIT.SRC-TGT.LANG`."""
    split, source, target = pair
    return folder / f"{split}.{source}-{target}.{source}", folder / f"{split}.{source}-{target}.{target}"
