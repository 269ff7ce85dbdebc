"""Turns the text tables of a folder that is being built into Arrow columns, which training maps into memory."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mclip_kit.data.columns import ROWS, key_column, write_columns
from mclip_kit.data.prepare.fingerprints import BLOCK, row_blocks
from mclip_kit.data.tables import FILES, OF_CAPTIONS, OF_IMAGES, OF_UNCAPTIONED
from mclip_kit.layout import CAPTIONS, CAPTIONS_TABLE, IMAGES, IMAGES_TABLE, UNCAPTIONED, UNCAPTIONED_TABLE


def to_columns(folder: Path, keys_N2: np.ndarray) -> None:
    """Write the tables as columns, and remove the text.

    Args:
        folder: it has images.tsv and captions.tsv, and uncaptioned.tsv where there are such pictures.
        keys_N2: of the contents of the pictures, uint64 in the order of images.tsv.
    """
    row_of: dict[str, int] = {}
    pictures = _blocks(folder / IMAGES_TABLE)
    first = next(pictures, [])
    with_files = bool(first) and len(first[0]) > len(OF_IMAGES)
    columns = {**OF_IMAGES, **(FILES if with_files else {"key": FILES["key"]})}
    blocks = (_pictures(rows, row_of, keys_N2, columns) for rows in chain([first], pictures))
    write_columns(folder / IMAGES, pa.schema(columns), blocks)
    for text, name, kinds in (
        (CAPTIONS_TABLE, CAPTIONS, OF_CAPTIONS),
        (UNCAPTIONED_TABLE, UNCAPTIONED, OF_UNCAPTIONED),
    ):
        if (folder / text).is_file():
            named = (_named(rows, row_of, kinds) for rows in _blocks(folder / text))
            write_columns(folder / name, pa.schema(kinds), named)
    for text in (IMAGES_TABLE, CAPTIONS_TABLE, UNCAPTIONED_TABLE):
        (folder / text).unlink(missing_ok=True)


def _blocks(table: Path) -> Iterator[list[list[str]]]:
    """The rows of a text table, at most ROWS at a time."""
    blocks = row_blocks(table)
    while several := list(islice(blocks, ROWS // BLOCK)):
        yield list(chain.from_iterable(several))


def _pictures(
    rows: list[list[str]], row_of: dict[str, int], keys_N2: np.ndarray, columns: Mapping[str, Any]
) -> dict[str, Any]:
    start = len(row_of)
    row_of |= {row[0]: number for number, row in enumerate(rows, start)}
    found = _cells(rows, columns)
    groups = [int(group) for group in found["group"]]
    return {**found, "group": groups, "key": key_column(keys_N2[start : start + len(rows)])}


def _named(rows: list[list[str]], row_of: Mapping[str, int], columns: Mapping[str, Any]) -> dict[str, Any]:
    found = _cells(rows, columns)
    return {**found, "image": [row_of[name] for name in found["image"]]}


def _cells(rows: list[list[str]], columns: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(columns, zip(*rows, strict=True) if rows else [()] * len(columns), strict=False))
