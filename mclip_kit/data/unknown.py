"""How much of a language a vocabulary cannot spell: the share of `<unk>` among its pieces."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mclip_kit.data.sequences import blocks_of
from mclip_kit.errors import DataError

MANY = 0.02  # share from which on there is a warning
SAMPLE = 2000  # rows of a language that are looked at


def unknown_shares(
    tokens: Sequence[np.ndarray], languages: Sequence[str], languages_N: np.ndarray, unknown: int | None
) -> dict[str, float]:
    """The share of `<unk>` in each language, over a sample of its rows.

    Args:
        tokens: ids of N texts, with one special token at each end.
        languages: codes; `languages_N` numbers them.
        unknown: the id of `<unk>`; None: the tokenizer has none, or spells everything in bytes.

    Example:
        >>> tokens = [np.array([0, 7, 3, 2]), np.array([0, 5, 2])]
        >>> unknown_shares(tokens, ["de", "en"], np.array([0, 1]), 3)
        {'de': 0.5, 'en': 0.0}
    """
    found = {}
    samples = _samples(languages_N, len(languages)) if unknown is not None else []
    for rows, language in zip(samples, languages, strict=False):
        ids = [np.asarray(tokens[row])[1:-1] for row in rows]
        pieces = sum(map(len, ids))
        if pieces:
            found[language] = sum(int((own == unknown).sum()) for own in ids) / pieces
    return found


def _samples(languages_N: np.ndarray, count: int) -> list[list[int]]:
    """Some rows of each language, evenly spread, at most `SAMPLE`."""
    totals, seen = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for part in blocks_of(len(languages_N)):
        totals += np.bincount(languages_N[part], minlength=count)
    every, rows = np.maximum(1, -(-totals // SAMPLE)), [list[int]() for _ in range(count)]
    for part in blocks_of(len(languages_N)):
        for number in np.unique(languages_N[part]).tolist():
            here = np.flatnonzero(languages_N[part] == number)
            rows[number] += (part.start + here[-seen[number] % every[number] :: every[number]]).tolist()
            seen[number] += len(here)
    return rows


def check_unknown(
    shares: Mapping[str, float], most: float, key: str, remedy: str, warn: Callable[[str], object]
) -> None:
    """Refuse a vocabulary that cannot spell a language; warn where it lacks much of one.

    Args:
        shares: as `unknown_shares` returns them.
        most: the largest allowed share.
        key: the setting of it.
        remedy: what to do, in words.
        warn: gets a line if a language has more than `MANY`.
    Raises:
        DataError: a language has more than `most`.
    """
    for language, share in shares.items():
        if share > most:
            raise DataError(
                f"{language}: the vocabulary cannot spell it, {share:.1%} of its pieces are <unk>; {remedy}; or accept "
                f"it with --set {key}=1"
            )
    many = {language: share for language, share in shares.items() if share > MANY}
    if many:
        listed = ", ".join(f"{language} ({share:.1%} <unk>)" for language, share in many.items())
        warn(f"warning: the vocabulary lacks many characters of {listed}; {remedy}")
