"""Parallel sentences by direction: what a translation stage learns from, and what it is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mclip_kit.data.bitext import Bitext, Side
from mclip_kit.data.examples import Tokenize
from mclip_kit.data.sequences import Chain
from mclip_kit.errors import DataError

Direction = tuple[str, str]
"""Source and target language."""


@dataclass(frozen=True)
class Directions:
    """N sentence pairs; one that is read both ways is two of them.

    Attributes:
        directions: source and target language; `directions_N` numbers them.
        sources, targets: ids of each side, `<s> ... </s>`.
        lengths_N: tokens of the longer side.
        corpora_N: the corpus of each pair.
    """

    directions: list[Direction]
    directions_N: np.ndarray
    sources: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    lengths_N: np.ndarray
    corpora_N: np.ndarray

    def __len__(self) -> int:
        return len(self.directions_N)

    @property
    def languages(self) -> list[str]:
        """All that are read or written."""
        return sorted({language for direction in self.directions for language in direction})


def names(directions: Sequence[Direction]) -> str:
    """Directions as people write them: de-en, en-de."""
    return ", ".join("-".join(direction) for direction in directions)


def available(bitexts: Sequence[Bitext], split: str, wanted: Sequence[str] | str = "all") -> list[Direction]:
    """The directions of a split, both ways of every pair.

    Args:
        wanted: some of them, as SOURCE-TARGET, in this order; or `all`.
    Raises:
        DataError: one that is wanted is not there; those that are, are named.
    """
    pairs = [pair for bitext in bitexts for pair in bitext.pairs(split)]
    both = list(dict.fromkeys(way for pair in pairs for way in (pair, pair[::-1])))
    chosen = both if wanted == "all" else [(way.split("-")[0], way.split("-")[1]) for way in wanted]
    missing = [way for way in chosen if way not in both]
    if missing or not chosen:
        places = ", ".join(str(bitext.folder) for bitext in bitexts)
        what = f"no {split} pair for {names(missing)}" if missing else f"no {split} pair"
        raise DataError(f"{places}: {what}; there are {names(both) or 'none'}")
    return chosen


def sides(bitext: Bitext, split: str, direction: Direction, max_tokens: int | None = None) -> tuple[Side, Side] | None:
    """Source and target of a direction, or None if a corpus has it neither way."""
    pairs = bitext.pairs(split)
    if direction in pairs:
        return bitext.read(split, *direction, max_tokens)
    if direction[::-1] in pairs:
        target, source = bitext.read(split, *direction[::-1], max_tokens)
        return source, target
    return None


def from_bitexts(
    bitexts: Sequence[Bitext],
    split: str,
    wanted: Sequence[str] | str,
    max_tokens: int,
    tokenize: Tokenize,
    pieces: list[str],
) -> Directions:
    """The pairs of several corpora in some directions.

    Args:
        wanted: see `available`.
        tokenize, pieces: of the encoder. A folder that was binarised with other pieces is tokenised anew from its text.
    Raises:
        DataError: a direction that is wanted is in none of them.
    """
    chosen = available(bitexts, split, wanted)
    numbers: list[int] = []
    corpora: list[int] = []
    left: list[Sequence[Any]] = []
    right: list[Sequence[Any]] = []
    for corpus, bitext in enumerate(bitexts):
        for number, direction in enumerate(chosen):
            found = sides(bitext, split, direction, max_tokens)
            if found and len(found[0].tokens):
                numbers.append(number)
                corpora.append(corpus)
                source, target = (_ids(bitext, side, tokenize, pieces) for side in found)
                left.append(source)
                right.append(target)
    if not left:
        raise DataError(f"{bitexts[0].folder}: no {split} sentences")
    counts = [len(part) for part in left]
    return Directions(
        directions=chosen,
        directions_N=np.repeat(numbers, counts),
        sources=Chain(left),
        targets=Chain(right),
        lengths_N=np.maximum(_lengths(left), _lengths(right)),
        corpora_N=np.repeat(corpora, counts),
    )


def _ids(bitext: Bitext, side: Side, tokenize: Tokenize, pieces: list[str]) -> Sequence[np.ndarray]:
    return side.tokens if bitext.pieces(side.language) == pieces else tokenize(side.texts)


def _lengths(parts: Sequence[Any]) -> np.ndarray:
    known = (part.lengths if hasattr(part, "lengths") else [len(ids) for ids in part] for part in parts)
    return np.concatenate([np.asarray(lengths, int) for lengths in known])
