"""What a cache holds, whether it is sound, and how it gets smaller."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mclip_kit.errors import DataError
from mclip_kit.features.shards import Layout, Shard, reopen

DAY = 86400.0


@dataclass(frozen=True)
class Kept:
    """A table of features on disk.

    Attributes:
        folder: where it is.
        kind: image, teacher, pooled_cls, tokens, ...
        named: what the recipe that filled it calls the tower's weights.
        weights: their hash.
        precision: in which they were computed.
        layout: of its items, as they are stored.
        rows: in whole shards.
        bytes: on disk, unfinished shards included.
        used: when it was used last, in seconds since 1970.
    """

    folder: Path
    kind: str
    named: str
    weights: str
    precision: str
    layout: Layout
    rows: int
    bytes: int
    used: float


def tables(root: Path) -> list[Kept]:
    """The tables under a root, the one used last at the end.

    Raises:
        DataError: there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name a cache with --root")
    return sorted((_look(path.parent) for path in root.glob("*/table.json")), key=lambda kept: kept.used)


def _look(folder: Path) -> Kept:
    path = folder / "table.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        said = {name: str(facts[name]) for name in ("kind", "named", "weights", "precision")}
        layout = Layout(int(facts["width"]), facts["dtype"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove its folder, and it is computed anew") from None
    rows = sum(_rows(shard) for shard in _shards(folder))
    size = sum(_size(file) for file in folder.rglob("*"))
    return Kept(folder, layout=layout, rows=rows, bytes=size, used=path.stat().st_mtime, **said)


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != ".part")


def _rows(shard: Path) -> int:
    """Rows of a shard; none of a damaged one, which `verify` finds."""
    try:
        return int(json.loads((shard / "shard.json").read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _size(path: Path) -> int:
    """Bytes of a file; a run that fills the table may have renamed it."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def verify(kept: Sequence[Kept]) -> Iterator[Path]:
    """Read every shard and yield the damaged ones, which the next run that needs them computes anew."""
    shards = [(table, shard) for table in kept for shard in _shards(table.folder)]
    for table, folder in tqdm(shards, "verify", unit="shard", leave=False):
        try:
            sound = Shard(folder, table.layout).is_sound()
        except DataError:
            sound = False
        if not sound:
            reopen(folder)
            yield folder


def select_for_removal(
    kept: Sequence[Kept], days: float | None = None, size: int | None = None, named: set[str] | None = None
) -> list[Kept]:
    """The tables to remove, by any of three rules.

    Args:
        kept: the one used last at the end.
        days: not used for so long.
        size: bytes that may stay; the ones used longest ago go first.
        named: what recipes call their towers' weights; tables of others go.
    """
    gone = {
        table.folder
        for table in kept
        if (days is not None and time.time() - table.used > days * DAY)
        or (named is not None and table.named not in named)
    }
    left = sum(table.bytes for table in kept if table.folder not in gone)
    for table in kept:
        if size is not None and left > size and table.folder not in gone:
            gone.add(table.folder)
            left -= table.bytes
    return [table for table in kept if table.folder in gone]


def remove(table: Kept) -> None:
    """Remove a table; one that is cut off leaves nothing that looks whole."""
    hidden = table.folder.with_name(f".{table.folder.name}.{os.getpid()}.gone")
    os.replace(table.folder, hidden)
    shutil.rmtree(hidden)
