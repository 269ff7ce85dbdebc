"""Reads tables: rows with named columns, from .tsv, .csv, .jsonl, .json, .parquet and .xlsx.

Crossmodal-3600, Conceptual Captions, WIT, sentence pairs with a column a language, and most data sets of a hub.
"""

import marshal
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from mclip_kit.data.corpora import Content, Corpus, Parts, Row, parse_options
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.cells import NamedPictures
from mclip_kit.data.corpora.pieces import Piece
from mclip_kit.data.corpora.records import OpenTable, open_table
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.corpora.table_rows import Options, Table, TableRows
from mclip_kit.errors import DataError

BLOCK, PICTURES = 2**11, 16  # rows that are read at once, without and with whole pictures in them
FEW = 4  # blocks that are read sooner without a process
WITH_PICTURES = (".parquet", ".xlsx")  # tables that may hold pictures; .xlsx is slow to open, not to read

Item = tuple[int, OpenTable, Piece | list[tuple[int, Any]] | bytes]
"""The number of a file, how it was opened, and a piece of it or numbered rows, which `marshal` may have packed; an
empty list at the file's end."""
Found = list[tuple[Table, File]]


def read(corpus: Corpus, source: Source) -> Content:
    """The rows of all tables, one after the other.

    Raises:
        DataError: a file is missing or damaged, or a row or column is wrong.
    """
    chosen = parse_options(corpus, Options)
    found = [(table, file) for table in chosen.tables for file in _files(table, source)]
    if not found:
        raise DataError(f"{source.root}: no table of this corpus in it; {corpus.obtain}")
    read_item = TableReader(found, chosen, [*corpus.languages, *corpus.caption_languages])
    tables = _Tables(found, read_item, source.account)
    few = sys.maxsize if tables.with_pictures else FEW
    parts = Parts(tables.items(), read_item, tables.after, tables.finish, few)
    return Content(parts.rows(source.account), parts=parts)


def _files(table: Table, source: Source) -> list[File]:
    found = source.files(table.file)
    return found if found or table.optional else [source.require(table.file)]


class TableReader:
    """Reads the rows of any file, in any process."""

    def __init__(self, found: Found, chosen: Options, languages: list[str]) -> None:
        self._found, self._chosen, self._languages, self._pictures = found, chosen, languages, NamedPictures()
        self._last: tuple[int, TableRows] | None = None

    def __call__(self, item: Item, account: Account) -> Iterator[Row]:
        """The rows of an item that have a text; the others are counted."""
        number, opened, rows = item
        if self._last is None or self._last[0] != number:
            self._last = number, self.table(number, opened)
        return self._last[1].rows(_numbered(opened, rows), account)

    def table(self, number: int, opened: OpenTable) -> TableRows:
        """The file with this number."""
        return TableRows(*self._found[number], opened, self._chosen, self._languages, self._pictures)


class _Tables:
    """The items of all files; what is not taken of them is counted when all are read."""

    def __init__(self, found: Found, read_item: TableReader, account: Account) -> None:
        self._found, self._table, self._account = found, read_item.table, account
        self.with_pictures = any(_may_hold_pictures(*one) for one in found)
        self._unread: dict[str, File] = {}
        self._last: dict[int, Any] = {}
        self._kept = 0

    def items(self) -> Iterator[Item]:
        """At most BLOCK rows each."""
        size = PICTURES if self.with_pictures else BLOCK
        for number, (table, file) in enumerate(self._found):
            opened = open_table(file, table)
            self._account.ignore("sheets", f"{', '.join(opened.unread)} of {file}", len(opened.unread))
            form = replace(opened, read=_read_elsewhere, pieces=None)
            columns = self._table(number, form)
            self._unread |= dict.fromkeys(columns.unread(opened.columns), file)
            if opened.pieces:
                yield from ((number, form, piece) for piece in opened.pieces())
            rows = iter(()) if opened.pieces else opened.read(columns.wanted)
            while block := list(islice(rows, size)):
                if opened.names is None:
                    self._last[number] = block[-1][1]
                    for _, row in block:
                        new = (name for name in row if name not in self._unread)
                        self._unread |= dict.fromkeys(columns.unread(new), file)
                yield number, form, block if self.with_pictures else marshal.dumps(block)
            yield number, form, []

    def after(self, item: Item, kept: int) -> None:
        """Count the rows of a file that are kept, and check at its end that there were some."""
        number, form, rows = item
        self._kept += kept
        if rows:
            return
        if not self._kept and number in self._last:
            self._table(number, form).check(self._last[number])
        self._kept = 0

    def finish(self) -> None:
        """Count what was not taken."""
        unread = ", ".join(name or "without a name" for name in self._unread)
        self._account.ignore("columns", unread, len(self._unread))
        for language, count in sorted(self._account.empty.items()):
            what = f"empty texts in {language} of rows that are kept"
            self._account.ignore(what, self._account.first_empty[language], count)


def _numbered(opened: OpenTable, rows: Piece | list[tuple[int, Any]] | bytes) -> Iterable[tuple[int, Any]]:
    if isinstance(rows, tuple):
        return opened.parse(rows) if opened.parse else ()
    unpacked: list[tuple[int, Any]] = marshal.loads(rows) if isinstance(rows, bytes) else rows
    return unpacked


def _may_hold_pictures(table: Table, file: File) -> bool:
    return file.name.lower().endswith(WITH_PICTURES) or f".{table.format}" in WITH_PICTURES


def _read_elsewhere(columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    raise NotImplementedError("rows are read where the file was opened")
