"""The rows of a corpus as tables and parallel text, written as they come."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from mclip_kit.data import CAPTION_COLUMNS, PICTURE_COLUMNS
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import SPLIT, Corpus, Row
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.errors import DataError

UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in names; macOS puts \u202f into a screenshot's, which fits
Pair = tuple[str, str, str]
"""(split, source language, target language)."""


class TableWriter:
    """Writes images.tsv, captions.tsv and the text of the bitext into a folder; use it as a context.

    Memory holds the names of pictures, and nothing else that grows.

    Attributes:
        splits: picture -> the splits of its captions.
        pairs: parallel sides, in the order of their first sentences -> how many sentences.
        counts: (what, split, ...) -> how many, of everything else.

    Args:
        folder: where the tables go.
        corpus: languages, cleaning, shares of the splits.
        source: finds picture files.
        drawn: the reader brings the pictures' pixels itself, so there are no files.
    """

    def __init__(self, folder: Path, corpus: Corpus, source: Source, drawn: bool) -> None:
        self.folder, self.corpus, self.source, self.drawn = folder, corpus, source, drawn
        self.cleaner = Cleaner(corpus.cleaning, [*corpus.languages, *corpus.caption_languages])
        self.splits: dict[str, tuple[str, ...]] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.pairs: Counter[Pair] = Counter()
        self._sides: dict[Pair, tuple[IO[str], IO[str]]] = {}
        self._known: set[str] = set()
        self._combinations: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "TableWriter":
        self._pictures = self._open(self.folder / "images.tsv")
        self._captions = self._open(self.folder / "captions.tsv")
        self._write(self._pictures, PICTURE_COLUMNS if self.drawn else (*PICTURE_COLUMNS, "file"))
        self._write(self._captions, CAPTION_COLUMNS)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, row: Row) -> None:
        """Write a row."""
        split = row.split or drawn_split(row.image or row.texts[0][1], self.corpus.splits)
        if split not in self._known:
            self._check_split(split)
        texts = [(language, self.cleaner.text(text)) for language, text in row.texts]
        if row.image is not None:
            self._add_picture(row, row.image, split)
            for language, text in texts:
                if self.cleaner.keeps_caption(row.image, language, text):
                    self._write(self._captions, (row.image, language, split, text))
                    self.counts["captions", split, language] += 1
        if row.parallel:
            self._add_pairs(split, texts)

    def _check_split(self, split: str) -> None:
        if not SPLIT.fullmatch(split):
            raise DataError(
                f"split {split!r}: call it train, valid or test; letters, digits, _ and - may follow, as in test_2017"
            )
        self._known.add(split)

    def _add_picture(self, row: Row, name: str, split: str) -> None:
        before = self.splits.get(name, ())
        if not before:
            where = self.source.root or self.corpus.reader
            if not name:
                raise DataError(f"{where}: a picture has no name; give it one, or remove its captions")
            if UNFIT.search(name):
                raise DataError(f"{where}: picture name {name!r} has a character that no table can hold; rename it")
            group = len(self.splits) if row.group is None else row.group
            self._write(self._pictures, (name, group, row.stratum, *([] if self.drawn else [self._file(row, name)])))
        if split not in before:
            splits = (*before, split)
            self.splits[name] = self._combinations.setdefault(splits, splits)
            self.counts["splits", split] += 1
            self.counts["strata", split, row.stratum] += 1

    def _file(self, row: Row, name: str) -> str:
        nameless = "://" in name and self.corpus.pictures is None  # many addresses end in image.jpg
        file = row.file or (None if nameless else self.source.picture(name))
        if file is None:
            self.counts["missing_pictures",] += 1
            return ""
        path = os.path.abspath(file)
        if UNFIT.search(path):
            raise DataError(f"{path!r}: a path with a character that no table can hold; rename it")
        return path

    def _add_pairs(self, split: str, texts: list[tuple[str, str]]) -> None:
        """Each text in the first language with those of the others at the same place."""
        first, *others = self.corpus.languages
        spoken: dict[str, list[tuple[str, str]]] = {}
        for text in texts:
            spoken.setdefault(text[0], []).append(text)
        for other in others:
            for source, target in zip(spoken.get(first, ()), spoken.get(other, ()), strict=False):
                if self.cleaner.keeps_pair(source, target):
                    pair = split, first, other
                    left, right = self._sides.get(pair) or self._new_pair(pair)
                    left.write(source[1] + "\n")
                    right.write(target[1] + "\n")
                    self.pairs[pair] += 1

    def _new_pair(self, pair: Pair) -> tuple[IO[str], IO[str]]:
        left, right = (raw_text(prefix) for prefix in prefixes(self.folder / "bitext", pair))
        self._sides[pair] = self._open(left), self._open(right)
        return self._sides[pair]

    def counted(self) -> dict[str, Any]:
        """What was written and what was left out, for the manifest."""
        nested: dict[str, Any] = {
            "images": len(self.splits),
            "missing_pictures": 0,
            "left_out": dict(self.cleaner.counts),
        }
        nested |= {"splits": {}, "strata": {}, "captions": {}, "sentence_pairs": {}}
        pairs = {("sentence_pairs", split, f"{a}-{b}"): count for (split, a, b), count in self.pairs.items()}
        for (*path, last), count in (self.counts | pairs).items():
            place = nested
            for part in path:
                place = place.setdefault(part, {})
            place[last] = count
        return nested

    def _open(self, path: Path) -> IO[str]:
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._stack.enter_context(open(path, "w", encoding="utf-8", newline="\n", buffering=2**16))

    def _write(self, table: IO[str], cells: Iterable[object]) -> None:
        table.write("\t".join(map(str, cells)) + "\n")


def prefixes(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """The two sides' paths without suffix, as fairseq names them."""
    split, source, target = pair
    return folder / f"{split}.{source}-{target}.{source}", folder / f"{split}.{source}-{target}.{target}"


def drawn_split(key: str, shares: dict[str, float]) -> str:
    """A split drawn by a text or name alone, so that equal ones fall into the same; the rest is train."""
    if not shares:
        return "train"
    place = int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=6).digest()) / 2**48
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return "train"
