"""Binarised sentences as a student reads them: those that text cleaning changes are tokenised again."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from mclip_kit.data.bitext import Side

Tokenize = Callable[[Sequence[str]], list[np.ndarray]]
Clean = Callable[[str], str]
UNTOUCHED = re.compile(r"[!-%'-~]+(?: [!-%'-~]+)*")
"""ASCII words with one space between, without `&`: nothing to repair, so most English costs a microsecond."""


class Replaced(Sequence[np.ndarray]):
    """Sentences of which some are replaced.

    Attributes:
        lengths: int64 (N,), tokens of each sentence.

    Args:
        source: binarised sentences.
        lengths: of the source.
        others: row -> its new ids.
    """

    def __init__(self, source: Sequence[np.ndarray], lengths: np.ndarray, others: dict[int, np.ndarray]) -> None:
        self._source, self._others = source, others
        self.lengths = np.array(lengths)
        self.lengths[list(others)] = [len(ids) for ids in others.values()]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        index = int(index)
        found = self._others.get(index)
        return self._source[index] if found is None else found


def cleaned(side: Side, tokenize: Tokenize, clean: Clean | None) -> Sequence[np.ndarray]:
    """The ids of a side's sentences; those that `clean` changes are tokenised from their text.

    Args:
        side: binarised sentences and their texts.
        tokenize: cleans texts and tokenises them.
        clean: None: nothing is cleaned.
    """
    if clean is None:
        return side.tokens
    rows = [row for row, text in enumerate(side.texts) if not UNTOUCHED.fullmatch(text) and clean(text) != spaced(text)]
    if not rows:
        return side.tokens
    others = dict(zip(rows, tokenize([side.texts[row] for row in rows]), strict=True))
    return Replaced(side.tokens, side.tokens.lengths, others)


def spaced(text: str) -> str:
    """A text with single spaces, as SentencePiece reads it."""
    return re.sub(" +", " ", text).strip(" ")
