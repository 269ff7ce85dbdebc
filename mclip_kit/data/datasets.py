"""The training rows of a stage as columns; a batch takes some rows of each column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mclip_kit.data.bitext import Bitext, Direction, Side, find_directions, read_direction
from mclip_kit.data.captions import Captions
from mclip_kit.data.cleaned import Clean, Tokenize, cleaned
from mclip_kit.data.sequences import ConcatSequence, Subset
from mclip_kit.errors import DataError

MISSING = -1


@dataclass(frozen=True)
class TriangleRows:
    """N rows for a triangle stage: student text, and teacher text or image or both.

    A row without an image or without teacher text takes no part in the edges to it.

    Attributes:
        languages: codes; `languages_N` numbers them.
        tokens: the student's ids of each row, `<s> ... </s>`.
        texts: the student's text of each row.
        lengths_N: number of tokens of each row.
        teacher_texts: the teacher's text of each row; empty if the row has none.
        images_N: row in the prepared folder's picture table, or MISSING.
        groups_N: rows with the same number count as positives for each other.
        sources_N: the corpus of each row.
    """

    languages: list[str]
    languages_N: np.ndarray
    tokens: Sequence[np.ndarray]
    texts: Sequence[str]
    lengths_N: np.ndarray
    teacher_texts: Sequence[str]
    images_N: np.ndarray
    groups_N: np.ndarray
    sources_N: np.ndarray

    def __len__(self) -> int:
        return len(self.languages_N)

    def select(self, rows: np.ndarray) -> "TriangleRows":
        """The given rows, in the given order."""
        return TriangleRows(
            languages=self.languages,
            languages_N=self.languages_N[rows],
            tokens=Subset(self.tokens, rows),
            texts=Subset(self.texts, rows),
            lengths_N=self.lengths_N[rows],
            teacher_texts=Subset(self.teacher_texts, rows),
            images_N=self.images_N[rows],
            groups_N=self.groups_N[rows],
            sources_N=self.sources_N[rows],
        )


def rows_from_captions(
    captions: Captions,
    split: str | Mapping[str, str],
    languages: Sequence[str] | str,
    teacher_language: str,
    tokenize: Tokenize,
) -> TriangleRows:
    """One row a caption. A caption in the teacher's language is also its own teacher text.

    Args:
        captions, split, languages: see `Captions.select`, also for its errors.
        teacher_language: of the teacher's text tower.
        tokenize: the student's tokenizer.
    """
    rows = captions.select(split, languages)
    texts = captions.texts[rows].tolist()
    codes, numbers = np.unique(captions.languages[rows].astype(str), return_inverse=True)
    tokens = tokenize(texts)
    known_N = captions.languages.isin([teacher_language])[rows]
    return TriangleRows(
        languages=[str(code) for code in codes],
        languages_N=numbers,
        tokens=tokens,
        texts=texts,
        lengths_N=np.array([len(ids) for ids in tokens]),
        teacher_texts=[text if known else "" for text, known in zip(texts, known_N, strict=True)],
        images_N=captions.images[rows],
        groups_N=captions.groups[captions.images[rows]],
        sources_N=np.zeros(len(rows), int),
    )


def rows_from_bitext(
    bitext: Bitext,
    split: str,
    languages: Sequence[str] | str,
    teacher_language: str,
    include_teacher_language: bool,
    max_tokens: int,
    tokenize: Tokenize,
    pieces: list[str],
    clean: Clean | None = None,
) -> TriangleRows:
    """One row for each sentence pair with a side in the teacher's language; the other side is the student's.

    Rows with the same teacher text count as positives for each other.

    Args:
        languages: of the student's side, or `all`.
        teacher_language: of the teacher's side.
        include_teacher_language: add each distinct teacher sentence once more, as both sides of a row (AltCLIP,
            arXiv 2211.06679).
        max_tokens: longer sentences are cut.
        tokenize, pieces: of the student's encoder. If the folder was binarised with other pieces, its text is
            tokenised again.
        clean: what `tokenize` does to a text first; sentences that it changes are tokenised again.
    Raises:
        DataError: a wanted language has no pair with the teacher's language.
    """
    pairs = _read_pairs(bitext, split, languages, teacher_language, max_tokens)
    rows = [(left, right) for left, right in pairs if languages == "all" or right.language in languages]
    if include_teacher_language:
        rows += [(left, left) for left, _ in pairs]
    if not rows:
        raise DataError(f"{bitext.folder}: no {split} sentence pairs in {languages}")
    students = [right for _, right in rows]
    codes = list(dict.fromkeys(side.language for side in students))
    same = {code: bitext.pieces(code) == pieces for code in codes}
    tokens = [cleaned(side, tokenize, clean) if same[side.language] else tokenize(side.texts) for side in students]
    lengths_N = _lengths(tokens)
    teacher_texts = ConcatSequence([left.texts for left, _ in rows])
    number: dict[str, int] = {}
    columns = TriangleRows(
        languages=codes,
        languages_N=np.repeat([codes.index(s.language) for s in students], [len(s.tokens) for s in students]),
        tokens=ConcatSequence(tokens),
        texts=ConcatSequence([side.texts for side in students]),
        lengths_N=lengths_N,
        teacher_texts=teacher_texts,
        images_N=np.full(len(lengths_N), MISSING),
        groups_N=np.array([number.setdefault(text, len(number)) for text in teacher_texts]),
        sources_N=np.zeros(len(lengths_N), int),
    )
    return _deduplicate(columns, teacher_language)


def rows_from_bitexts(
    bitexts: Sequence[Bitext], split: str, languages: Sequence[str] | str, teacher_language: str, **how: Any
) -> TriangleRows:
    """The rows of several corpora, one after the other; a corpus may lack some of the languages.

    The arguments are those of `rows_from_bitext`.

    Raises:
        DataError: a wanted language has no pair with the teacher's language in any corpus.
    """
    if len(bitexts) == 1:
        return rows_from_bitext(bitexts[0], split, languages, teacher_language, **how)
    partners = [{code for pair in b.pairs(split) if teacher_language in pair for code in pair} for b in bitexts]
    wanted = sorted(set().union(*partners)) if languages == "all" else list(languages)
    missing = [code for code in wanted if not any(code in codes for codes in partners)]
    if missing:
        places = ", ".join(str(bitext.folder) for bitext in bitexts)
        raise DataError(f"no {split} pair of {teacher_language} with {', '.join(missing)} in any of {places}")
    chosen = [
        (bitext, [code for code in wanted if code in codes]) for bitext, codes in zip(bitexts, partners, strict=True)
    ]
    return _concatenate(
        [rows_from_bitext(b, split, codes, teacher_language, **how) if codes else None for b, codes in chosen]
    )


def _concatenate(parts: Sequence[TriangleRows | None]) -> TriangleRows:
    """Rows of several corpora; those with the same teacher text count as positives for each other."""
    given = [(number, part) for number, part in enumerate(parts) if part is not None]
    codes = list(dict.fromkeys(code for _, part in given for code in part.languages))
    texts = ConcatSequence([part.teacher_texts for _, part in given])
    numbered: dict[str, int] = {}
    return TriangleRows(
        languages=codes,
        languages_N=np.concatenate([np.array([codes.index(c) for c in p.languages])[p.languages_N] for _, p in given]),
        tokens=ConcatSequence([part.tokens for _, part in given]),
        texts=ConcatSequence([part.texts for _, part in given]),
        lengths_N=np.concatenate([part.lengths_N for _, part in given]),
        teacher_texts=texts,
        images_N=np.concatenate([part.images_N for _, part in given]),
        groups_N=np.array([numbered.setdefault(text, len(numbered)) for text in texts]),
        sources_N=np.concatenate([np.full(len(part), number) for number, part in given]),
    )


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


def _deduplicate(rows: TriangleRows, language: str) -> TriangleRows:
    """Keep each sentence in the teacher's language once: it occurs in the pair with every other language."""
    if language not in rows.languages:
        return rows
    own = np.flatnonzero(rows.languages_N == rows.languages.index(language))
    first = {rows.texts[row]: row for row in own[::-1]}
    keep = np.sort(np.concatenate([np.setdiff1d(np.arange(len(rows)), own), np.array(list(first.values()), int)]))
    return rows.select(keep)


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
