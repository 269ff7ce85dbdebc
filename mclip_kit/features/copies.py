"""A feature cache in object storage: what is brought when, and what is sent. Paths that are no copies pass through.

A table is opened by what is small: descriptions, keys, offsets, checksums and the index. The values of a shard are
brought when a row of it is read, and again if they had to make room for others meanwhile. A shard that is filled here
is sent with shard.json, which makes it whole, last.

No lock is needed for that: shards do not change and are named by their keys, so machines that fill the same one write
the same rows, and whoever finishes first is taken. If two send at the same moment numbers that differ, as those of
unlike machines may, the checksums of the rows tell, and the shard is computed again.
"""

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from mclip_kit.storage import fetch, forget, make_room, send
from mclip_kit.storage.objects import (
    Facts,
    objects,
    record_of,
    records,
    storage_errors,
    system_of,
    unsent,
    version,
    write_record,
)
from mclip_kit.urls import is_copy

SHARD = "shard.json"  # a shard that has it is whole
VALUES = frozenset({"values.bin", "scales.bin"})
"""Files that are not brought before they are read."""
DESCRIPTIONS = ("*.json",)
SMALL = (*DESCRIPTIONS, "index-*.bin", "keys.bin", "offsets.bin", "unreadable.bin", "sums.bin", "blocks.bin")
"""Patterns of the files that describe tables, and of those that are brought when one is opened."""
TRIES = 3  # a copy may make room for another between its arrival and its opening
TIMES = ("LastModified", "updated", "mtime", "created")
"""What file systems say of when an object was written."""
Objects = Mapping[Path, Facts]
"""Copy -> what is known of its object."""


def open_brought(path: Path) -> int:
    """Open a file for reading, as `os.open` does; a copy that is not here is brought first.

    Raises:
        FileNotFoundError: it is gone, also there.
    """
    for left in reversed(range(TRIES)):
        try:
            return os.open(brought(path), os.O_RDONLY)
        except FileNotFoundError:
            if not left or not is_copy(path):
                raise
    raise AssertionError


def brought(path: Path) -> Path:
    """A file that is about to be read; its copy counts as used now."""
    if is_copy(path):
        fetch(path)
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return path


def bring_table(folder: Path) -> None:
    """Bring what opening a table reads."""
    fetch(folder, SMALL, again=True)


def bring_shard(folder: Path, values: bool = False) -> None:
    """Bring the copy of a shard that may be there by now.

    Args:
        values: whether with its values.
    """
    fetch(folder, ("*",) if values else SMALL, again=True)


def deliver(folder: Path) -> None:
    """Send a shard that was filled here, unless another machine was faster; its shard is taken then."""
    if folder / SHARD in objects_in(folder):
        shutil.rmtree(folder)
        bring_shard(folder)
    else:
        send(folder)


def is_whole(folder: Path) -> bool:
    """Whether a shard is whole; one that another machine sends now has no shard.json yet."""
    return (folder / SHARD).is_file() if is_copy(folder) else folder.exists()


def values_are_here(folder: Path) -> bool:
    """Whether the values of a shard need not be brought."""
    return not is_copy(folder) or (folder / "values.bin").is_file()


def shard_folders(folder: Path) -> list[Path]:
    """The folders of a table's whole shards."""
    with os.scandir(folder) as found:  # faster than iterdir and a look at each
        names = sorted(one.name for one in found if one.is_dir())
    remote = is_copy(folder)
    shards = [folder / name for name in names if name[-5:] != ".part"]
    return [shard for shard in shards if not remote or is_whole(shard)]


def room_for(folder: Path, size: int) -> None:
    """Copies used longest ago make room for a shard of so many bytes.

    Raises:
        StorageError: it is larger than all copies may be.
    """
    if is_copy(folder):
        make_room(size)


def discard(folder: Path) -> None:
    """Remove the copies in a folder, so that what is there is brought again; what was not sent stays."""
    kept = {*unsent(folder)}
    for copy in list(records(folder)):
        if copy not in kept:
            copy.unlink(missing_ok=True)
            record_of(copy).unlink(missing_ok=True)


def withdraw(folder: Path) -> None:
    """Remove what was written into a folder here and could not be sent, so that nobody sends it later."""
    if is_copy(folder):
        shutil.rmtree(folder, ignore_errors=True)
        for copy in list(records(folder)):
            record_of(copy).unlink(missing_ok=True)


def touch(path: Path) -> None:
    """Mark a file as used now, there and here; one that cannot be written there is as before.

    Raises:
        OSError, StorageError: it cannot be.
    """
    os.utime(path)
    if is_copy(path):
        with storage_errors(path, "written"):
            system, remote = system_of(path)
            system.put_file(str(path), remote)
            system.invalidate_cache()
            write_record(path, version(system.info(remote)))


def remove_remote(folder: Path) -> None:
    """Remove what a folder is the copy of, after the folder itself: first what makes it whole."""
    for name in (SHARD, "table.json", "columns.json"):
        forget(folder / name)
    forget(folder)


def objects_in(folder: Path) -> Objects:
    """All objects in a folder; none if it is no copy."""
    if not is_copy(folder):
        return {}
    with storage_errors(folder):
        return objects(folder)


def modified(facts: Facts) -> float:
    """When an object was written, in seconds since 1970; now, if its file system does not say."""
    found = next((facts[name] for name in TIMES if facts.get(name)), time.time())
    found = datetime.fromisoformat(found) if isinstance(found, str) else found
    return found.timestamp() if isinstance(found, datetime) else float(found)
