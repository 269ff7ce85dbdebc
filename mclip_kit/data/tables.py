"""The tables of a prepared folder: images, captions and uncaptioned, as Arrow columns.

Earlier versions wrote them as text (.tsv), which is read too. A text table names a picture in every row, a column has
the picture's row in the table of pictures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mclip_kit.data.columns import KEY, open_columns
from mclip_kit.data.manifest import check_files
from mclip_kit.errors import DataError, first_line
from mclip_kit.layout import (
    CAPTION_COLUMNS,
    CAPTIONS,
    CAPTIONS_TABLE,
    IMAGE_COLUMNS,
    IMAGES,
    IMAGES_TABLE,
    MANIFEST,
    UNCAPTIONED,
    UNCAPTIONED_COLUMNS,
    UNCAPTIONED_TABLE,
)
from mclip_kit.storage import fetch

AGAIN = "prepare it with --again"
FILES = {"file": pa.string(), "key": KEY}
"""Columns of pictures: where each is (empty: not found), and the hash of its content (zeros: not known)."""
OF_IMAGES = {"image": pa.string(), "group": pa.int64(), "stratum": pa.string()}
OF_CAPTIONS = {"image": pa.int32(), "language": pa.string(), "split": pa.string(), "caption": pa.string()}
OF_UNCAPTIONED = {"image": pa.int32(), "split": pa.string()}


@dataclass(frozen=True)
class Tables:
    """The tables of a prepared folder.

    Attributes:
        images: `OF_IMAGES`, with `file` if pictures are files, and with `key` unless an earlier version wrote it.
        captions: `OF_CAPTIONS`.
        uncaptioned: `OF_UNCAPTIONED`.
    """

    images: pa.Table
    captions: pa.Table
    uncaptioned: pa.Table


def open_tables(folder: Path) -> Tables:
    """Open the tables of a prepared folder; columns are memory-mapped.

    Raises:
        DataError: a table is missing or damaged, or they do not fit together; file and row are named.
    """
    for name in (IMAGES, CAPTIONS, UNCAPTIONED, MANIFEST):
        fetch(folder / name)
    if not (folder / IMAGES).is_file() and fetch(folder / IMAGES_TABLE).is_file():
        return _from_text(folder)
    there = (folder / UNCAPTIONED).is_file()
    names = (IMAGES, CAPTIONS, *([UNCAPTIONED] if there else []))
    hashed = check_files(folder, names)  # first: Arrow trusts what it maps
    images = _open(folder / IMAGES, OF_IMAGES, IMAGES not in hashed)
    captions = _open(folder / CAPTIONS, OF_CAPTIONS, CAPTIONS not in hashed)
    uncaptioned = pa.Table.from_batches([], pa.schema(OF_UNCAPTIONED))
    if there:
        uncaptioned = _open(folder / UNCAPTIONED, OF_UNCAPTIONED, UNCAPTIONED not in hashed)
    for name, table in ((CAPTIONS, captions), (UNCAPTIONED, uncaptioned)):
        _check_rows(folder / name, table, len(images))
    return Tables(images, captions, uncaptioned)


def _open(path: Path, columns: Mapping[str, pa.DataType], validate: bool) -> pa.Table:
    try:
        return open_columns(path, pa.schema(columns), validate)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}); {AGAIN}") from None


def _check_rows(path: Path, table: pa.Table, images: int) -> None:
    """DataError if a row is of a picture that is not there."""
    row = 0
    for chunk in table["image"].chunks:
        numbers_N = np.from_dlpack(chunk)
        if len(numbers_N) and (numbers_N.min() < 0 or numbers_N.max() >= images):
            row += int(np.argmax((numbers_N < 0) | (numbers_N >= images)))
            raise DataError(f"{path} row {row}: its image is not in images.arrow; prepare it with --again")
        row += len(chunk)


def _from_text(folder: Path) -> Tables:
    """The tables of a folder of an earlier version."""
    images = read_text_table(folder / IMAGES_TABLE, IMAGE_COLUMNS, "file")
    captions = read_text_table(fetch(folder / CAPTIONS_TABLE), CAPTION_COLUMNS)
    wrong = next((line for line, row in enumerate(images, 2) if not row[1].isdecimal()), None)
    if wrong:
        raise DataError(f"{folder / IMAGES_TABLE} line {wrong}: its group is not a number; {AGAIN}")
    row_of = {row[0]: number for number, row in enumerate(images)}
    columns = OF_IMAGES | ({"file": pa.string()} if images and len(images[0]) > len(OF_IMAGES) else {})
    path = fetch(folder / UNCAPTIONED_TABLE)
    without = read_text_table(path, UNCAPTIONED_COLUMNS) if path.is_file() else []

    check_files(folder, (IMAGES_TABLE, CAPTIONS_TABLE, UNCAPTIONED_TABLE))

    def numbered(rows: list[list[str]], table: Path, kinds: Mapping[str, pa.DataType]) -> pa.Table:
        return _columns([[_row_of(row_of, row[0], table, line), *row[1:]] for line, row in enumerate(rows, 2)], kinds)

    return Tables(
        _columns([[row[0], int(row[1]), *row[2:]] for row in images], columns),
        numbered(captions, folder / CAPTIONS_TABLE, OF_CAPTIONS),
        numbered(without, path, OF_UNCAPTIONED),
    )


def _row_of(row_of: Mapping[str, int], name: str, path: Path, line: int) -> int:
    """The row of a picture in the table of pictures."""
    if name not in row_of:
        raise DataError(f"{path} line {line}: its image is not in {IMAGES_TABLE}; {AGAIN}")
    return row_of[name]


def _columns(rows: list[list[object]], columns: Mapping[str, pa.DataType]) -> pa.Table:
    cells = list(zip(*rows, strict=True)) or [()] * len(columns)
    return pa.table({name: pa.array(own, kind) for own, (name, kind) in zip(cells, columns.items(), strict=True)})


def read_text_table(path: Path, columns: tuple[str, ...], more: str | None = None) -> list[list[str]]:
    """The rows of a text table; `more` is a column that may come after the others.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as handle:  # a CR inside a caption ends no row
            header, *rows = (line.rstrip("\r\n").split("\t") for line in handle)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a UTF-8 table ({error}); {AGAIN}") from None
    if more and tuple(header) == (*columns, more):
        columns = (*columns, more)
    if tuple(header) != columns:
        raise DataError(f"{path} line 1: columns are {', '.join(header)}, not {', '.join(columns)}")
    wrong = next((line for line, row in enumerate(rows, 2) if len(row) != len(columns)), None)
    if wrong:
        raise DataError(f"{path} line {wrong}: {len(rows[wrong - 2])} columns, not {len(columns)}")
    return rows


def as_text(tables: Tables) -> Iterator[tuple[str, Iterator[str]]]:
    """The tables as the lines of text tables: (name, lines), with pictures by their names."""
    names = tables.images["image"]

    def lines(table: pa.Table, columns: tuple[str, ...]) -> Iterator[str]:
        yield "\t".join(columns) + "\n"
        for batch in table.select(list(columns)).to_batches(max_chunksize=2**16):
            cells = [column.to_pylist() for column in batch.columns]
            if table is not tables.images:
                cells[0] = names.take(batch.column(0)).to_pylist()
            for row in zip(*cells, strict=True):
                yield "\t".join(map(str, row)) + "\n"

    files = ("file",) if "file" in tables.images.schema.names else ()
    yield IMAGES_TABLE, lines(tables.images, (*IMAGE_COLUMNS, *files))
    yield CAPTIONS_TABLE, lines(tables.captions, CAPTION_COLUMNS)
    yield UNCAPTIONED_TABLE, lines(tables.uncaptioned, UNCAPTIONED_COLUMNS)
