"""Opens tables that name the columns of each row, or hold more than text: .jsonl, .json, .parquet and .xlsx.

.jsonl and .parquet are read as a stream; a .json is held in memory as a whole.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mclip_kit.data.corpora.source import File
from mclip_kit.errors import DataError, first_line
from mclip_kit.files import check_unpacked, check_zip
from mclip_kit.storage import fetch

NumberedRows = Iterator[tuple[int, Any]]
"""(number, row): numbers are lines of a text file, or rows or items of others, and start at 1."""

ROWS_AT_ONCE = 1024
PICTURES_AT_ONCE = 16  # rows of a .parquet with whole pictures in them


def json_rows(file: File, encoding: str | None = None) -> NumberedRows:
    """The objects of a file that has one in each line."""
    for number, line in enumerate(file.lines(encoding), 1):
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


def json_items(file: File) -> NumberedRows:
    """The objects of a file that is one list of them, or an object with such a list, or name -> caption or captions."""
    content = file.json()
    if isinstance(content, dict):
        lists = [value for value in content.values() if _are_objects(value)]
        if not lists and content and all(map(_are_captions, content.values())):
            content = [{"image": name, "caption": captions} for name, captions in content.items()]
        else:
            content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise DataError(f"{file}: holds no list of objects; write a list of them, or one object a line")
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file} item {number}: not a JSON object; every item of the list must be one")
        yield number, row


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _are_captions(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def is_json_lines(file: File) -> bool:
    """Whether a .json has an object in each line, or whatever is no JSON; else it is JSON as a whole."""
    lines = (line for line in file.lines() if line.strip())
    first = next(lines, "{}").strip()
    if first.startswith("["):
        return False
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return not first.startswith("{")
    alone = isinstance(row, dict) and next(lines, None) is None
    return not (alone and row and (any(map(_are_objects, row.values())) or _is_map(row)))


def _is_map(row: dict[str, Any]) -> bool:
    return len(row) > 1 and all(map(_are_captions, row.values())) and all("." in key for key in row)


def xlsx_rows(file: File) -> tuple[NumberedRows, list[str]]:
    """The rows of the first sheet, each cell as text, the header first; and the names of the other sheets."""
    try:
        load = import_module("openpyxl").load_workbook
    except ModuleNotFoundError:
        raise DataError(
            f"{file}: reading it needs openpyxl, which is not installed: pip install openpyxl; or save the sheet as "
            "CSV UTF-8, and give that"
        ) from None
    if file.member:
        raise DataError(f"{file}: an .xlsx cannot be read inside an archive; unpack it first")
    with _xlsx_errors(file):
        check_zip(fetch(file.path))
        book = load(file.path, read_only=True, data_only=True)
        first, *others = book.worksheets
    return _sheet_rows(file, first), [sheet.title for sheet in others]


def _sheet_rows(file: File, sheet: Any) -> NumberedRows:
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    while True:
        with _xlsx_errors(file):
            number, cells = next(rows, (0, ()))
        if not number:
            return
        yield number, ["" if cell is None else str(cell) for cell in cells]


@contextmanager
def _xlsx_errors(file: File) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # openpyxl raises whatever zipfile, its XML parser and its own checks raise
        raise DataError(f"{file}: not a readable .xlsx ({first_line(error)}); save it again") from None


def parquet_names(file: File) -> list[str]:
    """The columns of a .parquet and the fields inside them, as `column.field`."""
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


def parquet_rows(file: File, columns: Collection[str]) -> NumberedRows:
    """Rows with the wanted columns only: others may hold whole pictures."""
    wanted = list(dict.fromkeys(column for column, name in _parquet_columns(file) if name in columns))
    opened, number = _open_parquet(file), 0
    big = any("binary" in str(field.type) for field in opened.schema_arrow if field.name in wanted)
    try:
        for batch in opened.iter_batches(PICTURES_AT_ONCE if big else ROWS_AT_ONCE, columns=wanted):
            for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                yield number, row
    except _arrow_errors() as error:
        what = f"{file}: cannot be read after row {number} ({first_line(error)})"
        raise DataError(f"{what}; fetch it again") from None


def _open_parquet(file: File) -> Any:
    if file.member or str(file.path) != str(file.path.with_name(file.name)):
        raise DataError(f"{file}: a .parquet cannot be read inside an archive; unpack it first")
    errors: tuple[type[Exception], ...] = (*_arrow_errors(), ValueError)
    try:
        opened = import_module("pyarrow.parquet").ParquetFile(fetch(file.path), page_checksum_verification=True)
        facts = opened.metadata
        unpacked = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
        check_unpacked(unpacked, file.path.stat().st_size)
        return opened
    except errors as error:
        raise DataError(f"{file}: not a readable .parquet ({first_line(error)}); fetch it again") from None


def _arrow_errors() -> tuple[type[Exception], ...]:
    try:
        return (import_module("pyarrow").ArrowException, OSError, UnicodeDecodeError)
    except ModuleNotFoundError:
        raise DataError("reading a .parquet needs pyarrow, which is not installed: pip install pyarrow") from None
