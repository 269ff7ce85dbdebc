"""Binarised sentences as a student reads them: those that text cleaning changes are tokenised again."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from mclip_kit.data.bitext import Side
from mclip_kit.data.sequences import some

Tokenize = Callable[[Sequence[str]], list[np.ndarray]]
Clean = Callable[[str], str]
UNTOUCHED = re.compile(r"[!-%'-~]+(?: [!-%'-~]+)*")
"""ASCII words with one space between, without `&`: nothing to repair, so most English costs a microsecond."""


def student_tokens(
    side: Side, rows: np.ndarray, tokenize: Tokenize, clean: Clean | None, same_pieces: bool
) -> list[np.ndarray]:
    """The ids of some sentences of a side, as the student reads them.

    Args:
        side: binarised sentences and their texts.
        rows: which sentences.
        tokenize: cleans texts and tokenises them.
        clean: sentences that it changes are tokenised from their text; None: nothing is cleaned.
        same_pieces: whether the side was binarised with the student's pieces; else all are tokenised from their text.
    """
    if not same_pieces:
        return tokenize(some(side.texts, rows))
    tokens = some(side.tokens, rows)
    if clean is None:
        return tokens
    texts = some(side.texts, rows)
    changed = [n for n, text in enumerate(texts) if not UNTOUCHED.fullmatch(text) and clean(text) != spaced(text)]
    for place, ids in zip(changed, tokenize([texts[n] for n in changed]) if changed else (), strict=True):
        tokens[place] = ids
    return tokens


def spaced(text: str) -> str:
    """A text with single spaces, as SentencePiece reads it."""
    return re.sub(" +", " ", text).strip(" ")
