"""Turns the tables of a folder that is being built into Arrow columns, which training maps into memory."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mclip_kit.data.columns import ROWS, key_column, write_columns
from mclip_kit.data.prepare.caption_rows import CaptionRows
from mclip_kit.data.tables import FILES, OF_CAPTIONS, OF_IMAGES, OF_UNCAPTIONED
from mclip_kit.layout import CAPTIONS, IMAGES, IMAGES_TABLE, UNCAPTIONED


def to_columns(
    folder: Path, captions: CaptionRows, keys_N2: np.ndarray, uncaptioned: Collection[tuple[int, str]]
) -> None:
    """Write images.arrow, captions.arrow and uncaptioned.arrow, and remove what they are made of.

    Args:
        folder: it has images.tsv.
        captions: they are written.
        keys_N2: of the contents of the pictures, uint64 in the order of images.tsv.
        uncaptioned: number of a picture, and a split without a caption of it.
    """
    pictures = _blocks(_batches(folder / IMAGES_TABLE, {**OF_IMAGES, "file": pa.string()}))
    first = next(pictures, None) or {name: pa.nulls(0, kind) for name, kind in OF_IMAGES.items()}
    columns = {**OF_IMAGES, **(FILES if "file" in first else {"key": FILES["key"]})}
    blocks = _with_keys(chain([first], pictures), keys_N2)
    write_columns(folder / IMAGES, pa.schema(columns), blocks)
    write_columns(folder / CAPTIONS, pa.schema(OF_CAPTIONS), captions.columns())
    if uncaptioned:
        kinds = pa.schema(OF_UNCAPTIONED)
        cells = map(pa.array, zip(*uncaptioned, strict=True), kinds.types)
        write_columns(folder / UNCAPTIONED, kinds, _blocks([pa.record_batch([*cells], schema=kinds)]))
    (folder / IMAGES_TABLE).unlink()
    captions.remove()


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The columns of some rows, ROWS rows at a time."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
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


def _with_keys(blocks: Iterable[dict[str, Any]], keys_N2: np.ndarray) -> Iterator[dict[str, Any]]:
    start = 0
    for columns in blocks:
        stop = start + len(columns["image"])
        yield {**columns, "key": key_column(keys_N2[start:stop])}
        start = stop
