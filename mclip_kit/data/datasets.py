"""Streams of a triangle's rows, from captions or from parallel text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mclip_kit.data.bitext import Bitext, Side
from mclip_kit.data.captions import Captions
from mclip_kit.data.cleaned import Clean, Tokenize, student_tokens
from mclip_kit.data.sequences import blocks_of, some
from mclip_kit.data.triangle_rows import RowBlock, RowStream
from mclip_kit.errors import DataError

AT_ONCE = 2**20  # keys that are sorted at once


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
            return RowBlock(languages_B, tokens, some(left.texts, rows), self.number)

        lefts, keys = [left for left, _ in self.pairs], list[np.ndarray]()
        for left, right in self.rows or zip(lefts, lefts, strict=True):
            for part in blocks_of(len(left.tokens)):
                found = block(left, right, np.arange(part.start, part.stop))
                keys.append(found.teacher_keys_B2[:, 0])
                if self.rows:
                    yield found
        for left, rows in _first_occurrences(lefts, keys) if include else ():
            for part in blocks_of(len(rows)):
                yield block(left, left, rows[part])


def _first_occurrences(sides: Sequence[Side], keys: list[np.ndarray]) -> Iterator[tuple[Side, np.ndarray]]:
    """The rows of each side whose sentence is in none before; a sentence occurs in the pair with every language.

    Args:
        keys: of the sentences of all sides, some of them each.
    """
    first_N = _are_first(np.concatenate([np.empty(0, "<u8"), *keys]))
    start = 0
    for side in sides:
        stop = start + len(side.tokens)
        yield side, np.flatnonzero(first_N[start:stop])
        start = stop


def _are_first(keys_N: np.ndarray) -> np.ndarray:
    """Which keys are in no row before, bool (N,); a range of keys is sorted at once."""
    first_N, ranges = np.zeros(len(keys_N), bool), max(1, len(keys_N) // AT_ONCE)
    for number in range(ranges):
        inside = [
            part.start + np.flatnonzero((keys_N[part] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32) == number)
            for part in blocks_of(len(keys_N))
        ]
        rows = np.concatenate([np.empty(0, np.int64), *inside])
        first_N[rows[np.unique(keys_N[rows], return_index=True)[1]]] = True
    return first_N


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
