"""What a stage trains on: streams of a triangle's rows, from captions or from parallel text; and pairs to translate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mclip_kit.data.bitext import Bitext, Direction, Side, find_directions, read_direction
from mclip_kit.data.captions import Captions
from mclip_kit.data.cleaned import Clean, Tokenize, student_tokens
from mclip_kit.data.content_keys import hash_texts, normalize_spaces
from mclip_kit.data.sequences import ConcatSequence, blocks_of
from mclip_kit.data.triangle_rows import RowBlock, RowStream
from mclip_kit.errors import DataError


def rows_from_captions(
    captions: Captions,
    split: str | Mapping[str, str],
    languages: Sequence[str] | str,
    teacher_language: str,
    tokenize: Tokenize,
) -> RowStream:
    """One row a caption. A caption in the teacher's language is also its own teacher text.

    Args:
        captions, split, languages: see `Captions.select`, also for its errors.
        teacher_language: of the teacher's text tower.
        tokenize: the student's tokenizer.
    """
    rows = captions.select(split, languages)
    codes = captions.languages.present(rows)
    number_of = np.array([codes.index(name) if name in codes else 0 for name in captions.languages.names], np.int16)

    def block(part: np.ndarray) -> RowBlock:
        texts, own_B = captions.texts[part].tolist(), captions.languages[part] == teacher_language
        return RowBlock(
            number_of[captions.languages.codes[part]],
            tokenize(texts),
            [text if own else "" for text, own in zip(texts, own_B, strict=True)],
            images_B=captions.images[part],
            groups_B=captions.groups[captions.images[part]],
        )

    return RowStream(codes, len(rows), (block(rows[part]) for part in blocks_of(len(rows))))


def rows_from_bitexts(
    bitexts: Sequence[Bitext],
    split: str,
    languages: Sequence[str] | str,
    teacher_language: str,
    include_teacher_language: bool,
    max_tokens: int,
    tokenize: Tokenize,
    pieces: list[str],
    clean: Clean | None = None,
) -> RowStream:
    """One row for each sentence pair with a side in the teacher's language; the other side is the student's.

    Rows with the same teacher text count as positives for each other. The rows of several corpora come one after the
    other; a corpus may lack some of the languages.

    Args:
        languages: of the student's side, or `all`.
        teacher_language: of the teacher's side.
        include_teacher_language: add each distinct teacher sentence of a corpus once more, as both sides of a row
            (AltCLIP, arXiv 2211.06679).
        max_tokens: longer sentences are cut.
        tokenize, pieces: of the student's encoder. If a folder was binarised with other pieces, its text is tokenised
            again.
        clean: what `tokenize` does to a text first; sentences that it changes are tokenised again.
    Raises:
        DataError: a wanted language has no pair with the teacher's language.
    """
    chosen = _chosen(bitexts, split, languages, teacher_language)
    corpora = [
        _Corpus(number, bitext, _read_pairs(bitext, split, wanted, teacher_language, max_tokens), wanted)
        for number, bitext, wanted in chosen
    ]
    for corpus in corpora:
        if not corpus.rows and not include_teacher_language:
            raise DataError(f"{corpus.bitext.folder}: no {split} sentence pairs in {languages}")
    students = [side for corpus in corpora for side in corpus.students(include_teacher_language)]
    codes = list(dict.fromkeys(side.language for side in students))

    def blocks() -> Iterator[RowBlock]:
        for corpus in corpora:
            yield from corpus.blocks(codes, include_teacher_language, tokenize, pieces, clean)

    return RowStream(codes, sum(len(side.tokens) for side in students), blocks())


@dataclass(frozen=True)
class _Corpus:
    """The pairs of a folder, the teacher's side first."""

    number: int
    bitext: Bitext
    pairs: list[tuple[Side, Side]]
    languages: Sequence[str] | str

    @property
    def rows(self) -> list[tuple[Side, Side]]:
        """The pairs in a wanted language."""
        return [pair for pair in self.pairs if self.languages == "all" or pair[1].language in self.languages]

    def students(self, include_teacher_language: bool) -> list[Side]:
        """The student's side of each pair of sides that gives rows."""
        return [right for _, right in self.rows] + [left for left, _ in self.pairs] * include_teacher_language

    def blocks(
        self, codes: list[str], include: bool, tokenize: Tokenize, pieces: list[str], clean: Clean | None
    ) -> Iterator[RowBlock]:
        """The rows; numbers of languages are places in `codes`."""
        same = {side.language: self.bitext.pieces(side.language) == pieces for side in self.students(include)}

        def block(left: Side, right: Side, rows: np.ndarray) -> RowBlock:
            tokens = student_tokens(right, rows, tokenize, clean, same[right.language])
            languages_B = np.full(len(rows), codes.index(right.language))
            return RowBlock(languages_B, tokens, [left.texts[row] for row in rows], self.number)

        for left, right in self.rows:
            for part in blocks_of(len(left.tokens)):
                yield block(left, right, np.arange(part.start, part.stop))
        for left, rows in _first_occurrences([left for left, _ in self.pairs]) if include else ():
            for part in blocks_of(len(rows)):
                yield block(left, left, rows[part])


def _first_occurrences(sides: Sequence[Side]) -> Iterator[tuple[Side, np.ndarray]]:
    """The rows of each side whose sentence is in none before; a sentence occurs in the pair with every language."""
    keys = [
        hash_texts(normalize_spaces(side.texts[row]) for row in range(part.start, part.stop))[:, 0]
        for side in sides
        for part in blocks_of(len(side.tokens))
    ]
    first = np.sort(np.unique(np.concatenate([np.empty(0, "<u8"), *keys]), return_index=True)[1])
    start = 0
    for side in sides:
        stop = start + len(side.tokens)
        yield side, first[np.searchsorted(first, start) : np.searchsorted(first, stop)] - start
        start = stop


def _chosen(
    bitexts: Sequence[Bitext], split: str, languages: Sequence[str] | str, teacher: str
) -> list[tuple[int, Bitext, Sequence[str] | str]]:
    """The folders that have some of the languages, with their numbers and languages."""
    if len(bitexts) == 1:
        return [(0, bitexts[0], languages)]
    partners = [{code for pair in b.pairs(split) if teacher in pair for code in pair} for b in bitexts]
    wanted = sorted(set().union(*partners)) if languages == "all" else list(languages)
    missing = [code for code in wanted if not any(code in codes for codes in partners)]
    if missing:
        places = ", ".join(str(bitext.folder) for bitext in bitexts)
        raise DataError(f"no {split} pair of {teacher} with {', '.join(missing)} in any of {places}")
    own = [[code for code in wanted if code in codes] for codes in partners]
    return [(number, bitext, codes) for number, (bitext, codes) in enumerate(zip(bitexts, own, strict=True)) if codes]


def _read_pairs(
    bitext: Bitext, split: str, languages: Sequence[str] | str, teacher: str, max_tokens: int
) -> list[tuple[Side, Side]]:
    pairs = bitext.pairs(split)
    found = {(set(pair) - {teacher} or {teacher}).pop(): pair for pair in pairs if teacher in pair}
    wanted = list(found) if languages == "all" else [language for language in languages if language != teacher]
    missing = [language for language in wanted if language not in found]
    if missing:
        have = ", ".join("-".join(pair) for pair in pairs) or "none"
        raise DataError(f"{bitext.folder}: no {split} pair of {teacher} with {', '.join(missing)}; there are {have}")
    read = []
    for language in wanted or list(found):
        left, right = bitext.read(split, *found[language], max_tokens)
        read.append((left, right) if left.language == teacher else (right, left))
    return read


@dataclass(frozen=True)
class TranslationRows:
    """N sentence pairs, each in one direction; a pair that is used in both directions is two rows.

    Attributes:
        directions: source and target language; `directions_N` numbers them.
        sources, targets: ids of each side, `<s> ... </s>`.
        lengths_N: number of tokens of the longer side.
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
        """All source and target languages."""
        return sorted({language for direction in self.directions for language in direction})


def translation_rows(
    bitexts: Sequence[Bitext],
    split: str,
    wanted: Sequence[str] | str,
    max_tokens: int,
    tokenize: Tokenize,
    pieces: list[str],
) -> TranslationRows:
    """The sentence pairs of several corpora in the wanted directions.

    Args:
        wanted: see `find_directions`.
        max_tokens: longer sentences are cut.
        tokenize, pieces: of the encoder. If a folder was binarised with other pieces, its text is tokenised again.
    Raises:
        DataError: a wanted direction is in none of the corpora, or they have no sentences.
    """
    chosen = find_directions(bitexts, split, wanted)
    numbers: list[int] = []
    corpora: list[int] = []
    left: list[Sequence[Any]] = []
    right: list[Sequence[Any]] = []
    for corpus, bitext in enumerate(bitexts):
        for number, direction in enumerate(chosen):
            found = read_direction(bitext, split, direction, max_tokens)
            if found and len(found[0].tokens):
                numbers.append(number)
                corpora.append(corpus)
                source, target = (_ids(bitext, side, tokenize, pieces) for side in found)
                left.append(source)
                right.append(target)
    if not left:
        raise DataError(f"{bitexts[0].folder}: no {split} sentences")
    counts = [len(part) for part in left]
    return TranslationRows(
        directions=chosen,
        directions_N=np.repeat(numbers, counts),
        sources=ConcatSequence(left),
        targets=ConcatSequence(right),
        lengths_N=np.maximum(_lengths(left), _lengths(right)),
        corpora_N=np.repeat(corpora, counts),
    )


def _ids(bitext: Bitext, side: Side, tokenize: Tokenize, pieces: list[str]) -> Sequence[np.ndarray]:
    return side.tokens if bitext.pieces(side.language) == pieces else tokenize(side.texts)


def _lengths(parts: Sequence[Any]) -> np.ndarray:
    """Number of tokens of each row; binarised sentences know theirs without being read."""
    known = (part.lengths if hasattr(part, "lengths") else [len(ids) for ids in part] for part in parts)
    return np.concatenate([np.asarray(lengths, int) for lengths in known])
