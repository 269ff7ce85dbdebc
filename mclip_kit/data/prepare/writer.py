"""Writes the rows of a corpus as tables and parallel text, while they are read."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain, compress, islice, repeat
from pathlib import Path
from typing import IO, Any

import numpy as np

from mclip_kit.data.corpora import SPLIT, Corpus
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.hashes import BLOCK
from mclip_kit.data.prepare.block import NO_DRAWS, Block
from mclip_kit.data.prepare.caption_rows import CaptionRows
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.data.prepare.parallel_text import ParallelText
from mclip_kit.data.prepare.picture_cells import UNFIT, PictureTar, fill_in_files, fit_path, near_file
from mclip_kit.data.prepare.picture_splits import PictureSplits
from mclip_kit.data.prepare.splits import EXACT, SplitByHash, draw_exactly
from mclip_kit.engine.base import Engine
from mclip_kit.engine.local import Processes
from mclip_kit.errors import DataError
from mclip_kit.layout import BITEXT, IMAGE_COLUMNS, IMAGES_TABLE

ALONE = Processes(1)
AMBIGUOUS = "pictures whose name fits several files"


class TableWriter:
    """Writes images.tsv, the captions and the text of the bitext into a folder; use it as a context.

    Only the names of pictures are held in memory; nothing else grows with the corpus. If splits are to be drawn, the
    first `splits.EXACT` rows wait in memory, and all are in the tables when the context ends.

    Attributes:
        captions: as rows.
        pictures: their names, and the splits of their captions.
        pairs: parallel sides, in the order of their first sentences -> number of sentences.
        counts: (what, split, ...) -> number, of everything else.
        uncaptioned: (number of a picture, split without a caption of it), in order.

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
        self.pictures = PictureSplits()
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.uncaptioned: dict[tuple[int, str], None] = {}
        self._known: set[str] = set()
        self._waiting: list[Block] = []
        self._by_hash: SplitByHash | None = None
        self._stack = ExitStack()
        self._pictures = PictureTar(folder)
        self._stack.callback(self._pictures.close)
        self._parallel = ParallelText(folder / BITEXT, corpus.languages, self.cleaner, self._stack)
        self.pairs = self._parallel.pairs

    def __enter__(self) -> "TableWriter":
        self._images = self._open(self.folder / IMAGES_TABLE)
        self.captions = self._stack.enter_context(CaptionRows(self.folder))
        self._write(self._images, IMAGE_COLUMNS if self.has_pixels else (*IMAGE_COLUMNS, "file"))
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._stack:
            if kind is None:
                self._write_waiting()
        if not self.has_pixels and kind is None:
            self._find_pictures()

    def add(self, block: Block) -> None:
        """Write rows, or let them wait until their split can be drawn.

        Raises:
            DataError: a split, a picture, a class or a path cannot be written; or the error that ended the block.
        """
        start = 0
        for rows_before, *event in block.events:
            self._add_rows(block.part(start, rows_before))
            self._count(*event)
            start = rows_before
        self._add_rows(block.part(start, block.rows))
        if block.error:
            raise block.error

    def _count(self, kind: str, why: str, where: str, count: int) -> None:
        if kind == "texts":
            self.cleaner.counts[why] += count
        else:
            self.source.account.replay(kind, why, where, count)

    def _add_rows(self, rows: Block) -> None:
        if not self.corpus.splits:
            self._write_rows(rows, [split or "train" for split in rows.splits])
            return
        start = 0
        while start < rows.rows:
            room = (BLOCK if self._by_hash else EXACT) - sum(waiting.rows for waiting in self._waiting)
            self._waiting.append(rows.part(start, min(rows.rows, start + room)))
            if self._waiting[-1].rows == room:
                self._by_hash = self._by_hash or SplitByHash(self.corpus.splits, self.corpus.held_out)
                self._write_waiting()
            start += room

    def _write_waiting(self) -> None:
        """Draw the splits of the rows that have none, all at once, and write the rows."""
        drawn = iter(self._draw([rows for rows in self._waiting if "" in rows.splits]))
        for rows in self._waiting:
            given = any(rows.splits)
            splits = [split or next(drawn) for split in rows.splits] if given else [*islice(drawn, rows.rows)]
            self._count_each("drawn", [*compress(splits, [not split for split in rows.splits])])
            self._write_rows(rows, splits)
        self._waiting = []

    def _count_each(self, what: str, splits: Sequence[str], *more: Sequence[str]) -> None:
        """Count each combination of a split and what else rows have; without a tuple a row if all have the same."""
        if all(len({*column}) == 1 for column in more):
            rest = [column[0] for column in more]
            self.counts.update({(what, split, *rest): splits.count(split) for split in dict.fromkeys(splits)})
        else:
            self.counts.update(zip(repeat(what), splits, *more))

    def _draw(self, waiting: list[Block]) -> list[str]:
        """The splits of the rows that have none."""
        if self._by_hash:
            numbers = [rows.draws_N[[not split for split in rows.splits]] for rows in waiting]
            return self._by_hash.draw(np.concatenate([NO_DRAWS, *numbers]))
        undrawn = [row for rows in waiting for row in rows.singly() if not row.splits[0]]
        items = [(row.images[0], row.texts) for row in undrawn]
        return draw_exactly(items, self.corpus.splits, np.concatenate([NO_DRAWS, *(row.hashes_N for row in undrawn)]))

    def _write_rows(self, rows: Block, splits: list[str]) -> None:
        """Write rows at once, or one by one where it matters in which order they are checked and counted."""
        pictured, paired = rows.images.count(None) < rows.rows, any(rows.parallel)
        ordered = pictured and (None in rows.images or (paired and self._loses_texts(rows)))
        if rows.rows > 1 and (ordered or not self._fit(rows, splits)):
            for row, split in zip(rows.singly(), splits, strict=True):
                self._write_rows(row, [split])
            return
        if rows.rows == 1:
            self._check(rows.images[0], splits[0], rows.strata[0])
        if pictured:
            self._add_captions(rows, splits, self._add_pictures(rows, splits))
            self.source.account.kept += rows.rows
        kept = self._parallel.add(rows, splits) if paired else [0] * rows.rows
        if not pictured:
            self._account_for(rows, kept)

    def _account_for(self, rows: Block, kept: list[int]) -> None:
        """Count rows without a picture, of which so many sentence pairs are kept."""
        for row, pairs in zip(rows.singly() if 0 in kept else [], kept, strict=False):
            if not pairs:
                why = "rows without a sentence pair that is kept" if row.parallel[0] else "rows without a picture"
                self.source.account.leave_out(why, _example(row))
        self.source.account.kept += rows.rows - kept.count(0)

    def _loses_texts(self, rows: Block) -> bool:
        """Whether texts may be left out, and are counted."""
        rules = self.corpus.cleaning
        return bool(rules.duplicates or rules.ratio or any(rows.reasons))

    def _fit(self, rows: Block, splits: list[str]) -> bool:
        """Whether all names can be written."""
        new = {*splits} - self._known
        self._known |= {split for split in new if SPLIT.fullmatch(split)}
        cells = "".join(filter(None, (*rows.images, *{*rows.strata})))
        return new <= self._known and "" not in rows.images and (cells.isprintable() or not UNFIT.search(cells))

    def _check(self, image: str | None, split: str, stratum: str) -> None:
        """Raise an error if the names of a row cannot be written."""
        if not SPLIT.fullmatch(split):
            raise DataError(
                f"split {split!r}: call it train, valid or test; letters, digits, _ and - may follow, as in test_2017"
            )
        where = self.source.root or self.corpus.reader
        if image == "":
            raise DataError(f"{where}: a picture has no name; give it one, or remove its captions")
        for what, name in (("picture", image), ("class", stratum)) if image else ():
            if UNFIT.search(str(name)):
                of = f" of picture {image!r}" if what == "class" else ""
                raise DataError(
                    f"{where}: {what} name {name!r}{of} has a character that a table cannot hold; rename the {what}"
                )

    def _add_pictures(self, rows: Block, splits: list[str]) -> Sequence[int]:
        """Write the pictures that are new; the number of each row's picture."""
        numbers, new, joined = self.pictures.add(rows.images, splits)
        of, strata = (_chosen(column, joined) for column in (splits, rows.strata))
        self._count_each("splits", of)
        self._count_each("strata", of, strata)
        self._images.write("".join(self._image_lines(rows, new, numbers)))
        return numbers

    def _image_lines(self, rows: Block, new: Sequence[int], numbers: Sequence[int]) -> list[str]:
        names, numbers, groups, strata = (
            _chosen(column, new) for column in (rows.images, numbers, rows.groups, rows.strata)
        )
        if groups.count(None) < len(groups):
            numbers = [number if group is None else group for number, group in zip(numbers, groups, strict=True)]
        files: Iterable[str] = repeat("" if self.has_pixels else "\t")
        if not self.has_pixels and (any(rows.files) or rows.contents.count(None) < rows.rows):
            files = (f"\t{self._file(rows.contents[row], rows.files[row])}" for row in new)
        cells = zip(names, numbers, strata, files, strict=False)
        return [f"{name}\t{number}\t{stratum}{file}\n" for name, number, stratum, file in cells]

    def _add_captions(self, rows: Block, splits: list[str], pictures: Sequence[int]) -> None:
        images, numbers, of = (self._for_texts(rows, column) for column in (rows.images, pictures, splits))
        columns: list[Sequence[Any]] = [numbers, rows.languages, of, rows.texts]
        kept = [True] * len(numbers)
        if self.corpus.cleaning.duplicates or any(rows.reasons):
            kept = list(map(self.cleaner.keeps_caption, images, rows.languages, rows.texts, rows.reasons))
            columns = [[*compress(column, kept)] for column in columns]
        self.captions.write(columns, rows.hashes_N[kept])
        self._count_each("captions", columns[2], columns[1])
        if self.uncaptioned or 0 in rows.counts or not all(kept):
            self._list_uncaptioned(rows, splits, pictures, kept)

    def _for_texts(self, rows: Block, column: Sequence[Any]) -> Sequence[Any]:
        """What the row of each text has in a column."""
        if rows.counts.count(1) == rows.rows:
            return column
        return list(chain.from_iterable(map(repeat, column, rows.counts)))

    def _list_uncaptioned(self, rows: Block, splits: list[str], pictures: Sequence[int], kept: list[bool]) -> None:
        rest = iter(kept)
        for picture, count in zip(zip(pictures, splits, strict=True), rows.counts, strict=True):
            if any([next(rest) for _ in range(count)]):
                self.uncaptioned.pop(picture, None)
            else:
                self.uncaptioned[picture] = None

    def _file(self, content: bytes | None, file: str | None) -> str:
        """The path of a picture's file, if the reader knows it or has its content; else empty until the end."""
        if content is not None:
            return self._pictures.add(content)
        return fit_path(os.path.abspath(file)) if file else ""

    def _find_pictures(self) -> None:
        """Find the other pictures' files, now that all names are known."""
        account = self.source.account
        finder = self.source.pictures(self.corpus.pictures is not None)
        matches = fill_in_files(self.folder, finder, len(self.pictures), self.engine)
        if matches.missing:
            self.counts["missing_pictures",] = matches.missing
        if matches.example:
            account.examples["missing_pictures"] = matches.example
            near = near_file(matches.example, finder.free_files(matches))
            account.examples |= {"near_pictures": near} if near else {}
        account.ignore(AMBIGUOUS, matches.where, matches.ambiguous)

    def counted(self) -> dict[str, Any]:
        """What was written and what was left out, for the manifest."""
        nested: dict[str, Any] = {
            "images": len(self.pictures),
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


def _chosen(column: Sequence[Any], rows: Sequence[int]) -> Sequence[Any]:
    """What some rows have in a column."""
    return column if len(rows) == len(column) else [column[row] for row in rows]


def _example(row: Block) -> str:
    """The texts of a row in a few words."""
    texts = zip(row.languages[:3], row.texts, strict=False)
    return "; ".join(f"{language}: {text[:30]!r}" for language, text in texts) or "a row without texts"
