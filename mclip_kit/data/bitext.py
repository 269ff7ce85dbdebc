"""Reads the parallel sentences of a fairseq-binarised folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from mclip_kit.data import fairseq_io
from mclip_kit.data.fairseq_io import side_file
from mclip_kit.data.manifest import check_files
from mclip_kit.data.sequences import TextLines
from mclip_kit.data.tokenizer import UNK
from mclip_kit.errors import DataError
from mclip_kit.layout import MANIFEST
from mclip_kit.storage import fetch, names, place

Direction = tuple[str, str]
"""Source and target language."""


@dataclass(frozen=True)
class Side:
    """One language of a pair.

    Attributes:
        language: its code.
        tokens: ids, `<s> ... </s>`, int32 (T,) each, memory-mapped.
        texts: the raw lines; if the folder has no raw text, the decoded ids.
    """

    language: str
    tokens: fairseq_io.Sentences
    texts: Sequence[str]


class DecodedText(Sequence[str]):
    """Text decoded from binarised SentencePiece ids, for folders without raw text."""

    def __init__(self, tokens: fairseq_io.Sentences, pieces: list[str]) -> None:
        self._tokens, self._pieces = tokens, pieces

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        pieces = (self._pieces[i - UNK - 1] for i in self._tokens[index] if i > UNK)
        return "".join(pieces).replace("\u2581", " ").strip()


@dataclass(frozen=True)
class Bitext:
    """A folder of `SPLIT.SRC-TGT.LANG.bin/.idx` and `dict.LANG.txt`, as `fairseq-preprocess` writes it."""

    folder: Path

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """The (source, target) languages of the pairs that a split has."""
        pattern = re.compile(rf"{re.escape(split)}\.([^.-]+)-([^.-]+)\.\1\.idx")
        matches = (pattern.fullmatch(name) for name in self._names)
        return [(match[1], match[2]) for match in matches if match]

    @property
    def splits(self) -> set[str]:
        """The splits that have sentences."""
        return {name.partition(".")[0] for name in self._names if fnmatchcase(name, "*.*-*.*.idx")}

    @cached_property
    def _names(self) -> list[str]:
        """Names of its files; of a copy also of those that are not brought yet."""
        return names(self.folder)

    def read(self, split: str, source: str, target: str, max_tokens: int | None = None) -> tuple[Side, Side]:
        """Both sides of a pair.

        Args:
            split, source, target: as in the file names.
            max_tokens: longer sentences lose their last pieces; None: they are read whole.
        Raises:
            DataError: a side is missing or damaged, or the sides do not have the same number of lines.
        """
        name = f"{split}.{source}-{target}"
        left, right = (self._side(name, language, max_tokens) for language in (source, target))
        if len(left.tokens) != len(right.tokens):
            raise DataError(
                f"{self.folder / name}: {len(left.tokens)} {source} lines but {len(right.tokens)} {target} lines; "
                "prepare it with --again"
            )
        return left, right

    def _side(self, name: str, language: str, max_tokens: int | None) -> Side:
        prefix = self.folder / f"{name}.{language}"
        files = (side_file(prefix, "bin"), side_file(prefix, "idx"), raw_text(prefix), self._dictionary(language))
        for file in (*files, self.folder.parent / MANIFEST):
            fetch(file)
        tokens = fairseq_io.Sentences(prefix, max_tokens)
        check_files(self.folder.parent, [f"{self.folder.name}/{file.name}" for file in files])
        self._check_ids(prefix, tokens, language)
        texts: Sequence[str]
        raw = raw_text(prefix)
        if raw.is_file():
            texts = TextLines(raw)
            if len(texts) != len(tokens):
                raise DataError(
                    f"{raw}: {len(texts)} lines of text but {len(tokens)} binarised ones; prepare it with --again"
                )
        else:
            texts = DecodedText(fairseq_io.Sentences(prefix), self.pieces(language))
        return Side(language, tokens, texts)

    def _dictionary(self, language: str) -> Path:
        return self.folder / f"dict.{language}.txt"

    def _check_ids(self, prefix: Path, tokens: fairseq_io.Sentences, language: str) -> None:
        """DataError if a side has an id that is not in its dictionary: an embedding has no row for it."""
        path = self._dictionary(language)
        if not path.is_file():
            return  # said where pieces are read
        known, highest = UNK + 1 + path.read_bytes().count(b"\n"), tokens.highest_id()
        if highest >= known:
            raise DataError(
                f"{side_file(prefix, 'bin')}: has the id {highest}, but {path.name} has {known} ids; prepare the "
                "corpus again"
            )

    def pieces(self, language: str) -> list[str]:
        """The pieces of a language's dictionary, after the four special tokens."""
        return fairseq_io.read_dictionary(fetch(self._dictionary(language)))


def raw_text(prefix: Path) -> Path:
    """The file with the raw text of a binarised side. It has a suffix, or fairseq would read it as binarised data."""
    return prefix.with_name(f"{prefix.name}.txt")


def open_bitext(folder: str | Path) -> Bitext:
    """Open a binarised folder.

    Raises:
        DataError: it has no binarised sentences.
    """
    path = place(folder)
    if not any(name.endswith(".idx") for name in names(path)):
        raise DataError(f"{folder}: no binarised sentences; run mclip-kit prepare or fairseq-preprocess")
    return Bitext(path)


def format_directions(directions: Sequence[Direction]) -> str:
    """Directions as text: de-en, en-de."""
    return ", ".join("-".join(direction) for direction in directions)


def check_split(bitexts: Sequence[Bitext], split: str) -> None:
    """DataError if no folder has sentences in a split; it lists the splits that have some."""
    if not any(bitext.pairs(split) for bitext in bitexts):
        known = ", ".join(sorted(set().union(*(bitext.splits for bitext in bitexts)))) or "none"
        places = ", ".join(str(bitext.folder) for bitext in bitexts)
        raise DataError(f"{places}: no sentences in split {split!r}; there are {known}")


def find_directions(bitexts: Sequence[Bitext], split: str, wanted: Sequence[str] | str = "all") -> list[Direction]:
    """The translation directions of a split: both directions of every pair.

    Args:
        bitexts: the folders, of which each may have other pairs.
        split: train, valid, test or similar.
        wanted: directions as SOURCE-TARGET, which are returned in this order; or `all`.
    Raises:
        DataError: there is no such split, or a wanted direction does not exist; the message lists those that do.
    """
    check_split(bitexts, split)
    pairs = [pair for bitext in bitexts for pair in bitext.pairs(split)]
    both = list(dict.fromkeys(way for pair in pairs for way in (pair, pair[::-1])))
    chosen = both if wanted == "all" else [(way.split("-")[0], way.split("-")[1]) for way in wanted]
    missing = [way for way in chosen if way not in both]
    if missing:
        places = ", ".join(str(bitext.folder) for bitext in bitexts)
        raise DataError(
            f"{places}: no {split} pair for {format_directions(missing)}; there are {format_directions(both)}"
        )
    return chosen


def read_direction(
    bitext: Bitext, split: str, direction: Direction, max_tokens: int | None = None
) -> tuple[Side, Side] | None:
    """Source and target of a direction; None if the folder has no such pair in either order."""
    pairs = bitext.pairs(split)
    if direction in pairs:
        return bitext.read(split, *direction, max_tokens)
    if direction[::-1] in pairs:
        target, source = bitext.read(split, *direction[::-1], max_tokens)
        return source, target
    return None
