"""Opens files of rows with named columns, in any of four formats: .tsv, .csv, .jsonl, .parquet.

Rows are read as a stream, so a file of any size takes the same memory.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import itemgetter, methodcaller
from typing import Any, Literal

from mclip_kit.data.corpora.source import File
from mclip_kit.errors import DataError, first_line

Format = Literal["tsv", "csv", "jsonl", "parquet"]
NumberedRows = Iterator[tuple[int, Any]]
"""(number, row): numbers are lines of a text file or rows of a .parquet, and start at 1."""

ENDINGS: dict[str, Format] = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
ROWS_AT_ONCE = 1024
LONGEST_CELL = 2**22  # characters in quotes; a longer cell means that a quote was not closed


class CellError(ValueError):
    """What is wrong with a cell; the caller knows the file and the row, and adds them."""


@dataclass(frozen=True)
class OpenTable:
    """A file that is open for reading.

    Attributes:
        unit: what the numbers of its rows count: line or row.
        names: its columns; None: each row has its own names.
        pick: column -> a function from a row to its cell, or to None if the row has no such cell.
        read: columns -> the rows, which have at least these columns; may be called once.
    """

    unit: str
    names: list[str] | None
    pick: Callable[[str], Callable[[Any], Any]]
    read: Callable[[Collection[str]], NumberedRows]


def open_table(file: File, format: Format | None, header: list[str] | None, quotes: bool | None) -> OpenTable:
    """Open a file.

    Args:
        format: None: by the ending of its name.
        header: the names of the columns of a .tsv or .csv that has no header line.
        quotes: whether quotes enclose cells; None: in a .csv, not in a .tsv.
    Raises:
        DataError: it cannot be read, or its name has another ending.
    """
    format = format or _format(file)
    if format == "parquet":
        return OpenTable("row", _parquet_names(file), _key, partial(_parquet_rows, file))
    if format == "jsonl":
        return OpenTable("line", None, _key, lambda _: _json_rows(file))
    delimiter = "\t" if format == "tsv" else ","
    quoted = format == "csv" if quotes is None else quotes
    rows = _quoted_rows(file, delimiter) if quoted else _plain_rows(file, delimiter)
    names = header or next((cells for _, cells in rows), [])
    return OpenTable(
        "line", names, lambda name: itemgetter(names.index(name)), lambda _: _check_width(file, names, rows)
    )


def _format(file: File) -> Format:
    for ending, format in ENDINGS.items():
        if file.name.endswith(ending):
            return format
    raise DataError(f"{file}: its name ends in none of {', '.join(ENDINGS)}; set its `format` in options.tables")


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


def _plain_rows(file: File, delimiter: str) -> NumberedRows:
    """Cells of a file without quoting: a quote is a character like any other."""
    for number, line in enumerate(file.lines(), 1):
        yield number, line.split(delimiter)


def _quoted_rows(file: File, delimiter: str) -> NumberedRows:
    """Cells that may be in quotes, and then may contain line ends."""
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader((line + "\n" for line in file.lines()), delimiter=delimiter, strict=True)
    try:
        for cells in rows:
            yield rows.line_num, cells
    except csv.Error as error:
        where = f"{file} line {rows.line_num}: {first_line(error)}"
        raise DataError(f"{where}; a quote in or above this line is not closed, or not doubled inside quotes") from None


def _check_width(file: File, names: list[str], rows: NumberedRows) -> NumberedRows:
    """Rows, which must have a cell for each column; empty lines are skipped."""
    width = len(names)
    for number, cells in rows:
        if len(cells) == width:
            yield number, cells
        elif any(cells):
            raise DataError(
                f"{file} line {number}: {_count(len(cells), 'cell')}, but there are {_count(width, 'column')} "
                f"({', '.join(names)}); fix the line, or fetch the file again"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _json_rows(file: File) -> NumberedRows:
    for number, line in enumerate(file.lines(), 1):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file} line {number}: not JSON ({first_line(error)}); every line must be an object"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{file} line {number}: not a JSON object; every line must be one")
        yield number, row


def _parquet_names(file: File) -> list[str]:
    return [name for _, name in _parquet_columns(file)]


def _parquet_columns(file: File) -> list[tuple[str, str]]:
    """(column, name) for each column and for each field inside it, with dots between the names."""
    opened = _open_parquet(file)
    try:
        return [(field.name, name) for field in opened.schema_arrow for name in _inner_names(field)]
    except _arrow_errors() as error:
        raise DataError(f"{file}: its columns cannot be read ({first_line(error)}); fetch it again") from None


def _inner_names(field: Any) -> Iterator[str]:
    yield field.name
    if str(field.type).startswith("struct<"):
        for inner in field.type:
            yield from (f"{field.name}.{name}" for name in _inner_names(inner))


def _parquet_rows(file: File, columns: Collection[str]) -> NumberedRows:
    """Rows with the wanted columns only: others may hold whole pictures."""
    wanted = list(dict.fromkeys(column for column, name in _parquet_columns(file) if name in columns))
    opened, number = _open_parquet(file), 0
    try:
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=wanted):
            for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                yield number, row
    except _arrow_errors() as error:
        what = f"{file}: cannot be read after row {number} ({first_line(error)})"
        raise DataError(f"{what}; fetch it again") from None


def _open_parquet(file: File) -> Any:
    if file.member or str(file.path) != str(file.path.with_name(file.name)):
        raise DataError(f"{file}: a .parquet cannot be read inside an archive; unpack it first")
    errors = _arrow_errors()
    try:
        return import_module("pyarrow.parquet").ParquetFile(file.path)
    except errors as error:
        raise DataError(f"{file}: not a readable .parquet ({first_line(error)}); fetch it again") from None


def _arrow_errors() -> tuple[type[Exception], ...]:
    try:
        return (import_module("pyarrow").ArrowException, OSError, UnicodeDecodeError)
    except ModuleNotFoundError:
        raise DataError("reading a .parquet needs pyarrow, which is not installed: pip install pyarrow") from None
