"""The rows of a translation stage: columns that are made once, kept in files and mapped by every process.

A sentence is kept once, though both directions of its pair read it.

Shapes: N rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.data.bitext import Bitext, Direction, Side, find_directions, read_direction
from mclip_kit.data.cleaned import Tokenize
from mclip_kit.data.row_files import ColumnWriter, Ragged, open_folder
from mclip_kit.data.sequences import ConcatSequence, Subset, blocks_of, some
from mclip_kit.errors import DataError
from mclip_kit.progress import SOON, tqdm


@dataclass(frozen=True)
class TranslationRows:
    """N sentence pairs, each in one direction; a pair that is used in both directions is two rows.

    Attributes:
        directions: source and target language; `directions_N` numbers them.
        sources, targets: ids of each side, `<s> ... </s>`.
        source_lengths_N: number of tokens of the source; `lengths_N`: of the longer side.
        corpora_N: the corpus of each pair.
        folder: where the columns are.
    """

    directions: list[Direction]
    directions_N: np.ndarray
    sources: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    source_lengths_N: np.ndarray
    lengths_N: np.ndarray
    corpora_N: np.ndarray
    folder: Path

    def __len__(self) -> int:
        return len(self.directions_N)

    @property
    def languages(self) -> list[str]:
        """All source and target languages."""
        return sorted({language for direction in self.directions for language in direction})


def write_translation_rows(
    folder: Path,
    bitexts: Sequence[Bitext],
    split: str,
    wanted: Sequence[str] | str,
    max_tokens: int,
    tokenize: Tokenize,
    pieces: list[str],
) -> None:
    """Write the sentence pairs of several corpora in the wanted directions, with a progress bar if it takes long.

    The rows of a corpus come one after the other, those of each direction in the order of the pairs.

    Args:
        folder: exists, and is empty.
        wanted: see `find_directions`.
        max_tokens: longer sentences are cut.
        tokenize, pieces: of the encoder. If a folder was binarised with other pieces, its text is tokenised again.
    Raises:
        DataError: a wanted direction is in none of the corpora, or they have no sentences.
    """
    chosen = find_directions(bitexts, split, wanted)
    facts: dict[str, Any] = {"directions": chosen, "parts": []}
    bar = tqdm(desc="rows: read", unit=" rows", unit_scale=True, leave=False, delay=SOON)
    with bar, ColumnWriter(folder, facts) as writer:
        sentences = _Sentences(writer)
        for corpus, bitext in enumerate(bitexts):
            pairs = bitext.pairs(split)
            own = {code: bitext.pieces(code) == pieces for pair in pairs for code in pair}
            known: dict[Direction, dict[str, tuple[int, np.ndarray]]] = {}
            for number, direction in enumerate(chosen):
                pair = direction if direction in pairs else direction[::-1]
                if pair not in known:
                    sides = read_direction(bitext, split, direction, max_tokens) or ()
                    known[pair] = {
                        side.language: sentences.add(side, None if own[side.language] else tokenize) for side in sides
                    }
                if known[pair] and len(known[pair][direction[0]][1]):
                    (source, lengths_M), (target, others_M) = (known[pair][code] for code in direction)
                    facts["parts"].append([source, target, len(lengths_M)])
                    for name, values in _columns(number, corpus, lengths_M, others_M).items():
                        writer.add(name, values)
                    bar.update(len(lengths_M))
        if not facts["parts"]:
            raise DataError(f"{bitexts[0].folder}: no {split} sentences")


def _columns(direction: int, corpus: int, sources_M: np.ndarray, targets_M: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of some rows, but for their tokens."""
    return {
        "direction": np.full(len(sources_M), direction, np.int16),
        "corpus": np.full(len(sources_M), corpus, np.int16),
        "source_length": sources_M,
        "length": np.maximum(sources_M, targets_M),
    }


class _Sentences:
    """Writes sentences as columns, one side of a pair after the other."""

    def __init__(self, writer: ColumnWriter) -> None:
        self._writer, self._count, self._end = writer, 0, 0

    def add(self, side: Side, tokenize: Tokenize | None) -> tuple[int, np.ndarray]:
        """Write a side; its first sentence's number, and the tokens of each, int32 (M,).

        Args:
            tokenize: makes the ids from the text; None: the binarised ones are taken.
        """
        first, lengths = self._count, [np.empty(0, np.int32)]
        for ids, lengths_B in _blocks(side, tokenize):
            ends_B = self._end + np.cumsum(lengths_B, dtype=np.int64)
            self._writer.add("tokens", ids)
            self._writer.add("tokens_end", ends_B)
            self._count, self._end = self._count + len(lengths_B), self._end + len(ids)
            lengths.append(lengths_B)
        return first, np.concatenate(lengths)


def _blocks(side: Side, tokenize: Tokenize | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of a side's sentences, one after the other, and the number of each one's, some sentences at a time."""
    for part in blocks_of(len(side.tokens)):
        if tokenize is None:
            yield side.tokens.block(part)
        else:
            tokens = tokenize(some(side.texts, np.arange(part.start, part.stop)))
            yield np.concatenate(tokens).astype(np.int32, copy=False), np.fromiter(map(len, tokens), np.int32)


def open_translation_rows(folder: Path) -> TranslationRows:
    """Map rows that were written.

    Raises:
        DataError: a file is damaged.
    """
    facts, columns = open_folder(folder)
    sentences = Ragged(columns["tokens"], columns["tokens_end"])

    def side(place: int) -> ConcatSequence:
        parts = ((part[place], part[2]) for part in facts["parts"])
        return ConcatSequence([Subset(sentences, range(start, start + count)) for start, count in parts])

    return TranslationRows(
        directions=[(source, target) for source, target in facts["directions"]],
        directions_N=columns["direction"],
        sources=side(0),
        targets=side(1),
        source_lengths_N=columns["source_length"],
        lengths_N=columns["length"],
        corpora_N=columns["corpus"],
        folder=folder,
    )
