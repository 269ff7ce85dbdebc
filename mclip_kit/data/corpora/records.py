"""Opens tables: files of rows with named columns, as .tsv, .csv, .jsonl, .json, .parquet or .xlsx.

Rows are read as a stream, so that a file of any size takes the same memory; `whole_files` has the exceptions.
"""

import csv
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from operator import itemgetter, methodcaller
from typing import Any, Literal

from pydantic import Field, field_validator

from mclip_kit.config.yaml import Section
from mclip_kit.data.corpora.pieces import Piece, in_pieces, lines_of, pieces
from mclip_kit.data.corpora.source import File
from mclip_kit.data.corpora.whole_files import (
    NumberedRows,
    is_json_lines,
    json_items,
    json_rows,
    parquet_names,
    parquet_rows,
    xlsx_rows,
)
from mclip_kit.errors import DataError, first_line

Format = Literal["tsv", "csv", "jsonl", "json", "parquet", "xlsx"]
ENDINGS: dict[str, Format] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
OTHERS = {
    ".xls": "save the sheet as CSV UTF-8 or as .xlsx",
    ".ods": "save the sheet as CSV UTF-8 or as .xlsx",
    ".arrow": "write it as .parquet: datasets.load_from_disk(DIR).to_parquet('table.parquet')",
    ".zip": "unpack it first",
    ".tar": "give pictures with captions in tars to --webdataset",
}
"""Files that are often taken for tables, and what to do with them."""
SEPARATORS = "\t,;|"
LINES_SEEN = 200  # that show whether quotes enclose cells
LONGEST_CELL = 2**22  # characters in quotes; a longer cell means that a quote was not closed
IN_QUOTES = re.compile(r'"(?:[^"]|"")*"')


class CellError(ValueError):
    """What is wrong with a cell; the caller knows the file and the row, and adds them."""


class Form(Section):
    """How a table is written; what is not said is seen from its name and its first line."""

    header: list[str] | None = Field(None, description="Names of the columns of a file without a header line.")
    format: Format | None = Field(None, description="None: by the ending of the file's name, or by its first line.")
    quotes: bool | None = Field(
        None, description="Whether quotes enclose cells; None: in a .csv, and where the header is in quotes."
    )
    separator: str | None = Field(None, description="Between cells; None: that of the first line.")
    encoding: str | None = Field(
        None, description="Of a text file, such as cp1252; None: UTF-8, or UTF-16 with a mark."
    )

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator in '\r\n"'):
            raise ValueError("give one character")
        return separator

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError("Python knows no such encoding") from None
        return encoding


@dataclass(frozen=True)
class OpenTable:
    """A file that is open for reading.

    Attributes:
        unit: what the numbers of its rows count: line, row or item.
        names: its columns; None: each row has its own names.
        pick: column -> a function from a row to its cell, or to None if the row has no such cell.
        read: columns -> the rows, which have at least these columns; may be called once.
        unread: sheets that are not read.
        pieces: the pieces of a text file, from which `parse` makes the same rows as `read`, in any process; None: rows
            are read here.
    """

    unit: str
    names: list[str] | None
    pick: Callable[[str], Callable[[Any], Any]]
    read: Callable[[Collection[str]], NumberedRows]
    unread: list[str] = field(default_factory=list)
    pieces: Callable[[], Iterator[Piece]] | None = None
    parse: Callable[[Piece], NumberedRows] | None = None

    @property
    def columns(self) -> list[str]:
        """Its columns, without the fields inside them."""
        return [
            name for name in self.names or [] if not any(name.startswith(f"{other}.") for other in self.names or [])
        ]


def open_table(file: File, form: Form) -> OpenTable:
    """Open a file.

    Raises:
        DataError: it cannot be read, or it is no table.
    """
    format = form.format or _format(file, form)
    if format == "json":
        format = "jsonl" if is_json_lines(file) else format
    if format == "parquet":
        return OpenTable("row", parquet_names(file), _key, partial(parquet_rows, file))
    if format == "json":
        return OpenTable("item", None, _key, lambda _: json_items(file))
    if format == "jsonl":
        return OpenTable("line", None, _key, lambda _: json_rows(file, form.encoding))
    if format == "xlsx":
        rows, unread = xlsx_rows(file)
        return _open_cells(file, form.header, rows, "row", unread)
    return _open_separated(file, format, form)


def _format(file: File, form: Form) -> Format:
    """By the ending of its name; else by its first line."""
    for ending, format in ENDINGS.items():
        if file.name.lower().endswith(ending):
            return format
    for ending, remedy in OTHERS.items():
        if file.name.lower().endswith(ending):
            raise DataError(f"{file}: a {ending} is not read as a table; {remedy}")
    first = first_text_line(file, form)
    if first[:1] in ("{", "["):
        return "json"
    if not any(mark in first for mark in form.separator or SEPARATORS):
        raise DataError(
            f"{file}: its first line has no tab, comma, semicolon or |, so it is no table; its name may end in "
            f"{', '.join(ENDINGS)}"
        )
    return "tsv" if _separator(first, "\t") == "\t" else "csv"


def first_text_line(file: File, form: Form) -> str:
    """The first line of a text file that is not empty."""
    line = next((line for line in file.lines(form.encoding) if line.strip()), "")
    if "\0" in line:
        raise DataError(f"{file}: not a text file; tables are {', '.join(ENDINGS)}")
    return line


def _separator(line: str, usual: str) -> str:
    """What is most often between the cells of a line; `usual` if nothing is more frequent."""
    plain = IN_QUOTES.sub("", line)
    return max(usual + SEPARATORS, key=plain.count)


def _key(name: str) -> Callable[[Any], Any]:
    """A function from an object to the value of a key; `a.b` is key b of the object under key a."""
    return partial(_nested_key, name) if "." in name else methodcaller("get", name)


def _nested_key(name: str, row: dict[str, Any]) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise CellError(f"{name}: {str(value)[:50]!r} is not an object with {key!r} in it")
        value = value.get(key)
    return value


def _open_separated(file: File, format: Format, form: Form) -> OpenTable:
    """A file with the cells of a row in a line, or in several if they are in quotes."""
    usual = "\t" if format == "tsv" else ","
    first = next(file.lines(form.encoding), "")
    separator = form.separator or (usual if form.header else _separator(first, usual))
    in_quotes = first.startswith('"') and first.rstrip().endswith('"') and not form.header
    quoted = form.quotes
    if quoted is None:
        quoted = (format == "csv" and separator != "|") or in_quotes or _are_quoted(file, separator, form.encoding)
    if quoted:
        spaced = f"{separator} " in first and separator != "\t"
        return _open_cells(file, form.header, _quoted_rows(file, separator, form.encoding, spaced), "line", [])
    rows = ((number, line.split(separator)) for number, line in enumerate(file.lines(form.encoding), 1))
    opened = _open_cells(file, form.header, rows, "line", [])
    if not in_pieces(file, form.encoding):
        return opened
    parse = partial(_rows_of, file, separator, opened.names or [], bool(form.header))
    whole = partial(pieces, file)
    return replace(opened, read=lambda _: chain.from_iterable(map(parse, whole())), pieces=whole, parse=parse)


def _rows_of(file: File, separator: str, names: list[str], named: bool, piece: Piece) -> NumberedRows:
    """The rows of a piece; the first line of the file has the names, if they were not given."""
    rows = ((number, line.split(separator)) for number, line in lines_of(file, piece))
    return _check_width(file, "line", names, rows if named or piece[0] else islice(rows, 1, None))


def _are_quoted(file: File, separator: str, encoding: str | None) -> bool:
    """Whether all quotes of the first lines enclose cells, and some are doubled inside, as pandas writes them."""
    lines = islice(file.lines(encoding), LINES_SEEN)
    cells = [cell for line in lines if '"' in line for cell in line.split(separator) if '"' in cell]
    return all(map(IN_QUOTES.fullmatch, cells)) and any('""' in cell[1:-1] for cell in cells)


def _quoted_rows(file: File, separator: str, encoding: str | None, spaced: bool) -> NumberedRows:
    """Cells that may be in quotes, and then may contain line ends."""
    csv.field_size_limit(LONGEST_CELL)
    lines = (line + "\n" for line in file.lines(encoding))
    rows = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)
    try:
        for cells in rows:
            yield rows.line_num, cells
    except csv.Error as error:
        where = f"{file} line {rows.line_num}: {first_line(error)}"
        raise DataError(f"{where}; a quote in or above this line is not closed, or not doubled inside quotes") from None


def _open_cells(file: File, header: list[str] | None, rows: NumberedRows, unit: str, unread: list[str]) -> OpenTable:
    """A file whose rows are lists of cells, the header first if it is not given."""
    names = header or [name.strip() for name in next((cells for _, cells in rows), [])]
    first = next(rows, None)
    rows = chain([first] if first else [], rows)
    if first and not header and len(first[1]) == len(names) + 1 and first[1][0].isdigit():
        names = ["", *names]  # R writes the numbers of rows, and no name for them

    pick = partial(_cell, file, names)
    return OpenTable(unit, names, pick, lambda _: _check_width(file, unit, names, rows), unread)


def _cell(file: File, names: list[str], name: str) -> Callable[[Any], Any]:
    if names.count(name) > 1:
        raise DataError(f"{file}: {names.count(name)} columns are called {name!r}; give each a name of its own")
    return itemgetter(names.index(name))


def _check_width(file: File, unit: str, names: list[str], rows: NumberedRows) -> NumberedRows:
    """Rows, which must have a cell for each column; empty lines are skipped."""
    width = len(names)
    for number, cells in rows:
        if len(cells) == width:
            yield number, cells
        elif any(cells):
            raise DataError(
                f"{file} {unit} {number}: {_count(len(cells), 'cell')}, but there are {_count(width, 'column')} "
                f"({', '.join(names)}); fix or remove the {unit}, or give each column a name in the first one"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
