"""Turns the text tables of a folder that is being built into Arrow columns, which training maps into memory."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mclip_kit.data.columns import ROWS, key_column, write_columns
from mclip_kit.data.tables import FILES, OF_CAPTIONS, OF_IMAGES, OF_UNCAPTIONED
from mclip_kit.layout import CAPTIONS, CAPTIONS_TABLE, IMAGES, IMAGES_TABLE, UNCAPTIONED, UNCAPTIONED_TABLE


def to_columns(folder: Path, keys_N2: np.ndarray) -> None:
    """Write the tables as columns, and remove the text.

    Args:
        folder: it has images.tsv and captions.tsv, and uncaptioned.tsv where there are such pictures.
        keys_N2: of the contents of the pictures, uint64 in the order of images.tsv.
    """
    row_of: dict[str, int] = {}
    pictures = _blocks(folder / IMAGES_TABLE, {**OF_IMAGES, "file": pa.string()})
    first: dict[str, Any] = next(pictures, {name: pa.array([], kind) for name, kind in OF_IMAGES.items()})
    columns = {**OF_IMAGES, **(FILES if "file" in first else {"key": FILES["key"]})}
    blocks = (_pictures(rows, row_of, keys_N2) for rows in chain([first], pictures))
    write_columns(folder / IMAGES, pa.schema(columns), blocks)
    for text, name, kinds in (
        (CAPTIONS_TABLE, CAPTIONS, OF_CAPTIONS),
        (UNCAPTIONED_TABLE, UNCAPTIONED, OF_UNCAPTIONED),
    ):
        if (folder / text).is_file():
            named = (_named(rows, row_of) for rows in _blocks(folder / text, {**kinds, "image": pa.string()}))
            write_columns(folder / name, pa.schema(kinds), named)
    for text in (IMAGES_TABLE, CAPTIONS_TABLE, UNCAPTIONED_TABLE):
        (folder / text).unlink(missing_ok=True)


def _blocks(table: Path, kinds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The columns that a text table has, ROWS rows at a time."""
    held: list[pa.RecordBatch] = []
    for batch in _batches(table, kinds):
        held.append(batch)
        while sum(map(len, held)) >= ROWS:
            whole = pa.Table.from_batches(held)
            yield _columns(whole.slice(0, ROWS))
            held = whole.slice(ROWS).to_batches()
    if sum(map(len, held)):
        yield _columns(pa.Table.from_batches(held))


def _batches(table: Path, kinds: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of a text table: cells are what is between tabs, and lines end with a line feed."""
    from pyarrow import csv

    yield from csv.open_csv(
        str(table),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(column_types=dict(kinds), strings_can_be_null=False),
    )


def _columns(rows: pa.Table) -> dict[str, Any]:
    return {name: rows[name].combine_chunks() for name in rows.column_names}


def _pictures(columns: dict[str, Any], row_of: dict[str, int], keys_N2: np.ndarray) -> dict[str, Any]:
    start = len(row_of)
    row_of |= {name: number for number, name in enumerate(columns["image"].to_pylist(), start)}
    return {**columns, "key": key_column(keys_N2[start : len(row_of)])}


def _named(columns: dict[str, Any], row_of: Mapping[str, int]) -> dict[str, Any]:
    return {**columns, "image": [row_of[name] for name in columns["image"].to_pylist()]}
