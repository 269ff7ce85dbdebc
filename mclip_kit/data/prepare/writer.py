"""Writes the rows of a corpus as tables and parallel text, while they are read."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import SPLIT, Corpus
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.data.prepare.hashed_text import HashedText
from mclip_kit.data.prepare.hashes import BLOCK
from mclip_kit.data.prepare.picture_cells import UNFIT, PictureTar, fill_in_files, fit_path, near_file
from mclip_kit.data.prepare.reading import Block, CleanRow, Text
from mclip_kit.data.prepare.splits import EXACT, SplitByHash, draw_exactly
from mclip_kit.engine.base import Engine
from mclip_kit.engine.local import Processes
from mclip_kit.errors import DataError
from mclip_kit.layout import (
    BITEXT,
    CAPTION_COLUMNS,
    CAPTIONS_TABLE,
    IMAGE_COLUMNS,
    IMAGES_TABLE,
    UNCAPTIONED_COLUMNS,
    UNCAPTIONED_TABLE,
)

ALONE = Processes(1)
AMBIGUOUS = "pictures whose name fits several files"
Pair = tuple[str, str, str]
"""(split, source language, target language)."""


class TableWriter:
    """Writes images.tsv, captions.tsv, uncaptioned.tsv and the text of the bitext into a folder; use it as a context.

    Only the names of pictures are held in memory; nothing else grows with the corpus. If splits are to be drawn, the
    first `splits.EXACT` rows wait in memory, and all are in the tables when the context ends.

    Attributes:
        splits: picture -> the splits of its captions.
        pairs: parallel sides, in the order of their first sentences -> number of sentences.
        counts: (what, split, ...) -> number, of everything else.

    Args:
        folder: where the tables go.
        corpus: languages, cleaning, shares of the splits.
        source: finds picture files.
        has_pixels: the reader supplies the pictures' pixels, so there are no picture files.
        engine: runs the processes that look for many picture files.
    """

    def __init__(self, folder: Path, corpus: Corpus, source: Source, has_pixels: bool, engine: Engine = ALONE) -> None:
        self.engine = engine
        self.folder, self.corpus, self.source, self.has_pixels = folder, corpus, source, has_pixels
        self.cleaner = Cleaner(corpus.cleaning, [*corpus.languages, *corpus.caption_languages])
        self.splits: dict[str, tuple[str, ...]] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.pairs: Counter[Pair] = Counter()
        self._sides: dict[Pair, tuple[HashedText, HashedText]] = {}
        self._uncaptioned: dict[tuple[str, str], None] = {}  # picture and split, in order
        self._known: set[str] = set()
        self._languages: set[str] = set()
        self._combinations: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._waiting: list[tuple[CleanRow, list[int]]] = []
        self._by_hash: SplitByHash | None = None
        self._stack = ExitStack()
        self._pictures = PictureTar(folder)
        self._stack.callback(self._pictures.close)

    def __enter__(self) -> "TableWriter":
        self._images = self._open(self.folder / IMAGES_TABLE)
        header = "\t".join(CAPTION_COLUMNS) + "\n"
        self._captions = self._stack.enter_context(HashedText(self.folder / CAPTIONS_TABLE, header))
        self._write(self._images, IMAGE_COLUMNS if self.has_pixels else (*IMAGE_COLUMNS, "file"))
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._stack:
            if kind is None:
                self._write_waiting()
                self._write_uncaptioned()
        if not self.has_pixels and kind is None:
            self._find_pictures()

    def _write_uncaptioned(self) -> None:
        if self._uncaptioned:
            table = self._open(self.folder / UNCAPTIONED_TABLE)
            for cells in (UNCAPTIONED_COLUMNS, *self._uncaptioned):
                self._write(table, cells)

    def add(self, block: Block) -> None:
        """Write rows, or let them wait until their split can be drawn.

        Raises:
            DataError: a split or a picture has a name that cannot be written; or the error that ended the block.
        """
        hashes = iter(block.hashes_N.tolist())
        for event in block.events:
            if isinstance(event, list):
                self._count(*event)
            else:
                row = CleanRow(*event)
                self._add_row(row, list(islice(hashes, len(row.texts))))
        if block.error:
            raise block.error

    def _count(self, kind: str, why: str, where: str, count: int) -> None:
        if kind == "texts":
            self.cleaner.counts[why] += count
        else:
            self.source.account.replay(kind, why, where, count)

    def _add_row(self, row: CleanRow, hashes: list[int]) -> None:
        if not self.corpus.splits:
            self._write_row(row, row.split or "train", hashes)
            return
        self._waiting.append((row, hashes))
        if len(self._waiting) >= (BLOCK if self._by_hash else EXACT):
            self._by_hash = self._by_hash or SplitByHash(self.corpus.splits, self.corpus.held_out)
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Draw the splits of the rows that have none, all at once, and write the rows."""
        undrawn = [(row, hashes) for row, hashes in self._waiting if not row.split]
        items = [(row.image, [text for _, text, _ in row.texts]) for row, _ in undrawn]
        draw = self._by_hash.draw if self._by_hash else partial(draw_exactly, shares=self.corpus.splits)
        splits = iter(draw(items, hashes=[hashes for _, hashes in undrawn]) if undrawn else ())
        for row, hashes in self._waiting:
            split = row.split or next(splits)
            if not row.split:
                self.counts["drawn", split] += 1
            self._write_row(row, split, hashes)
        self._waiting = []

    def _write_row(self, row: CleanRow, split: str, hashes: list[int]) -> None:
        if split not in self._known:
            self._check_split(split)
        if row.image is not None:
            self._add_picture(row, row.image, split)
            self._add_captions(row.image, split, row.texts, hashes)
        paired = row.parallel and self._add_pairs(split, row.texts, hashes)
        if paired or row.image is not None:
            self.source.account.kept += 1
        else:
            why = "rows without a sentence pair that is kept" if row.parallel else "rows without a picture"
            self.source.account.leave_out(why, _example(row.texts))

    def _check_split(self, split: str) -> None:
        if not SPLIT.fullmatch(split):
            raise DataError(
                f"split {split!r}: call it train, valid or test; letters, digits, _ and - may follow, as in test_2017"
            )
        self._known.add(split)

    @property
    def _where(self) -> Path | str:
        """Where the rows are from, for messages."""
        return self.source.root or self.corpus.reader

    def _check_cell(self, what: str, cell: str, remedy: str) -> None:
        """DataError if a table cannot hold a name."""
        if UNFIT.search(cell):
            raise DataError(f"{self._where}: {what} {cell!r} has a character that a table cannot hold; {remedy}")

    def _add_picture(self, row: CleanRow, name: str, split: str) -> None:
        before = self.splits.get(name, ())
        if not before:
            if not name:
                raise DataError(f"{self._where}: a picture has no name; give it one, or remove its captions")
            self._check_cell("picture name", name, "rename the picture")
            self._check_cell("class or stratum", row.stratum, f"rename it; picture {name} has it")
            group = len(self.splits) if row.group is None else row.group
            file = "" if self.has_pixels else f"\t{self._file(row, name)}"
            self._images.write(f"{name}\t{group}\t{row.stratum}{file}\n")
        if split not in before:
            splits = (*before, split)
            self.splits[name] = self._combinations.setdefault(splits, splits)
            self.counts["splits", split] += 1
            self.counts["strata", split, row.stratum] += 1

    def _add_captions(self, image: str, split: str, texts: list[Text], hashes: list[int]) -> None:
        kept = False
        for (language, text, wrong), number in zip(texts, hashes, strict=True):
            if self.cleaner.keeps_caption(image, language, text, wrong):
                if language not in self._languages:
                    self._check_cell("language", language, "rename it")
                    self._languages.add(language)
                self._captions.write(f"{image}\t{language}\t{split}\t{text}\n", number)
                self.counts["captions", split, language] += 1
                kept = True
        if kept:
            self._uncaptioned.pop((image, split), None)
        else:
            self._uncaptioned[image, split] = None

    def _file(self, row: CleanRow, name: str) -> str:
        """The path of a picture's file, if the reader knows it or has its content; else empty until the end."""
        if row.content is not None:
            return self._pictures.add(row.content)
        return fit_path(os.path.abspath(row.file)) if row.file else ""

    def _find_pictures(self) -> None:
        """Find the other pictures' files, now that all names are known."""
        account = self.source.account
        finder = self.source.pictures(self.corpus.pictures is not None)
        matches = fill_in_files(self.folder, finder, len(self.splits), self.engine)
        if matches.missing:
            self.counts["missing_pictures",] = matches.missing
        if matches.example:
            account.examples["missing_pictures"] = matches.example
            near = near_file(matches.example, finder.free_files(matches))
            account.examples |= {"near_pictures": near} if near else {}
        account.ignore(AMBIGUOUS, matches.where, matches.ambiguous)

    def _add_pairs(self, split: str, texts: list[Text], hashes: list[int]) -> int:
        """Pair the n-th text in the first language with that in each other language; how many pairs are kept."""
        first, *others = self.corpus.languages
        by_language: dict[str, list[tuple[Text, int]]] = {}
        kept = 0
        for text in zip(texts, hashes, strict=True):
            by_language.setdefault(text[0][0], []).append(text)
        for other in others:
            left, right = by_language.get(first, []), by_language.get(other, [])
            if left and right and len(left) != len(right):
                self.cleaner.counts["texts without a translation at their place"] += abs(len(left) - len(right))
            for source, target in zip(left, right, strict=False):
                if self._keeps_pair(source[0], target[0]):
                    self._write_pair((split, first, other), source, target)
                    kept += 1
        return kept

    def _keeps_pair(self, source: Text, target: Text) -> bool:
        return self.cleaner.keeps_pair(source[:2], target[:2], source[2] or target[2])

    def _write_pair(self, pair: Pair, *sides: tuple[Text, int]) -> None:
        for file, (text, number) in zip(self._sides.get(pair) or self._new_pair(pair), sides, strict=True):
            file.write(text[1] + "\n", number)
        self.pairs[pair] += 1

    def _new_pair(self, pair: Pair) -> tuple[HashedText, HashedText]:
        prefixes = side_prefixes(self.folder / BITEXT, pair)
        left, right = (self._stack.enter_context(HashedText(raw_text(prefix))) for prefix in prefixes)
        self._sides[pair] = left, right
        return self._sides[pair]

    def counted(self) -> dict[str, Any]:
        """What was written and what was left out, for the manifest."""
        nested: dict[str, Any] = {
            "images": len(self.splits),
            "missing_pictures": 0,
            "rows": self.source.account.as_json(),
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


def side_prefixes(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """The paths of a pair's two sides without suffix, as fairseq names them: `SPLIT.SRC-TGT.LANG`."""
    split, source, target = pair
    return folder / f"{split}.{source}-{target}.{source}", folder / f"{split}.{source}-{target}.{target}"


def _example(texts: list[Text]) -> str:
    """The texts of a row in a few words."""
    return "; ".join(f"{language}: {text[:30]!r}" for language, text, _ in texts[:3]) or "a row without texts"
