"""List, verify and remove the tables of a feature cache."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mclip_kit.data.row_files import COLUMNS, ROWS, columns_are_sound
from mclip_kit.errors import MALFORMED, DataError
from mclip_kit.features.copies import DESCRIPTIONS, Objects, modified, objects_in, remove_remote, shard_folders
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.shard_writer import remove_damaged
from mclip_kit.features.shards import is_sound
from mclip_kit.locks import remove_leftovers, temporary_name
from mclip_kit.progress import tqdm
from mclip_kit.storage import fetch
from mclip_kit.urls import is_copy

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class TableInfo:
    """A table of features on disk.

    Attributes:
        folder: the table's folder.
        kind: image, teacher, pooled_cls, tokens, ...
        source: the name of the tower's weights in the recipe that created the table.
        weights: a hash of the weights.
        precision: the type in which the features were computed.
        item_format: width and stored type of the items.
        rows: rows of whole shards.
        bytes: bytes on disk, with those of unfinished shards.
        used: time of last use, in seconds since 1970.
    """

    folder: Path
    kind: str
    source: str
    weights: str
    precision: str
    item_format: ItemFormat
    rows: int
    bytes: int
    used: float


def list_tables(root: Path) -> list[TableInfo]:
    """The tables under a cache's root, in order of their last use.

    Raises:
        DataError: the folder does not exist, or a table.json is damaged.
    """
    fetch(root, DESCRIPTIONS, again=True)
    there = objects_in(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name a cache with --root")
    found = [_read_table(path.parent, there) for path in root.glob("[!.]*/table.json")]
    found += [_read_rows(path.parent, there) for path in root.glob(f"{ROWS}-*/{COLUMNS}")]
    return sorted(filter(None, found), key=lambda table: table.used)


def _read_rows(folder: Path, there: Objects) -> TableInfo | None:
    """Training rows, which a run keeps beside the features; None if another process removes them meanwhile."""
    with suppress(FileNotFoundError):
        lengths, used = folder / "length.bin", _used(folder / COLUMNS, there)
        count = int(there[lengths]["size"] if lengths in there else lengths.stat().st_size) // 4
        taken = _bytes(folder, there)
        return TableInfo(folder, ROWS, "training rows", "", "", ItemFormat(1, "uint8"), count, taken, used)
    return None


def _read_table(folder: Path, there: Objects) -> TableInfo | None:
    """None if another process removes the table meanwhile."""
    path = folder / "table.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        kind, source, weights, precision = (str(facts[name]) for name in ("kind", "named", "weights", "precision"))
        item_format = ItemFormat(int(facts["width"]), facts["dtype"])
        used = _used(path, there)
        rows = sum(_rows(shard) for shard in shard_folders(folder))
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: damaged ({error}); remove its folder: features are computed again") from None
    return TableInfo(folder, kind, source, weights, precision, item_format, rows, _bytes(folder, there), used)


def _used(path: Path, there: Objects) -> float:
    """When a description was written, or marked as used, last."""
    return modified(there[path]) if path in there else path.stat().st_mtime


def _bytes(folder: Path, there: Objects) -> int:
    """Bytes of all files; not by rglob, which fails when a run renames a folder meanwhile."""
    if is_copy(folder):
        return sum(int(facts["size"]) for path, facts in there.items() if path.is_relative_to(folder))
    return sum(_size(Path(place, file)) for place, _, files in os.walk(folder) for file in files)


def _rows(shard: Path) -> int:
    """Rows of a shard; 0 if it is damaged, which `verify` reports."""
    try:
        return int(json.loads((shard / "shard.json").read_text(encoding="utf-8"))["rows"])
    except (OSError, *MALFORMED):
        return 0


def _size(path: Path) -> int:
    """Bytes of a file; 0 if a run that fills the table has renamed it meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def verify(tables: Sequence[TableInfo]) -> Iterator[Path]:
    """Read every shard, and all training rows; remove the damaged ones and yield their folders."""
    for table in (table for table in tables if table.kind == ROWS):
        if not columns_are_sound(table.folder):
            remove(table)
            yield table.folder
    there = [table for table in tables if table.kind != ROWS and table.folder.is_dir()]
    shards = [(table, folder) for table in there for folder in shard_folders(table.folder)]
    for table, folder in tqdm(shards, "verify", unit="shard", leave=False):
        if not is_sound(folder, table.item_format) and remove_damaged(folder, table.item_format):
            yield folder


def select_for_removal(
    tables: Sequence[TableInfo], days: float | None = None, size: int | None = None
) -> list[TableInfo]:
    """The tables to remove, by one rule or both.

    Args:
        tables: in order of their last use.
        days: tables that were not used for so many days are removed.
        size: bytes that may stay; of the tables that are left, those used longest ago are removed first.
    """
    old = {table.folder for table in tables if days is not None and time.time() - table.used > days * DAY}
    left = sum(table.bytes for table in tables if table.folder not in old)
    removed = []
    for table in tables:
        too_much = size is not None and left > size and table.folder not in old
        if too_much:
            left -= table.bytes
        if too_much or table.folder in old:
            removed.append(table)
    return removed


def remove(table: TableInfo) -> None:
    """Remove a table; if the removal is interrupted, what is left is hidden, and the next removal deletes it."""
    hidden = temporary_name(table.folder.with_name(f"{table.folder.name}-{time.time_ns()}"))
    with suppress(FileNotFoundError):  # another process removes it
        os.replace(table.folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
    remove_remote(table.folder)
    remove_leftovers(table.folder.parent)
