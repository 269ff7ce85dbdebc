"""Hashes of the contents of picture files, which are the keys of their features. A file is read once.

Known hashes are rows of a table like those of towers: the key of a row is a hash of the file's path, size and time of
change, its item is the hash of the content, 16 bytes. So processes share the reading, a stop loses little, and damage
is found.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mclip_kit.data import images
from mclip_kit.data.content_keys import hash_bytes
from mclip_kit.features.index import slices
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.table import Table
from mclip_kit.storage import stamps
from mclip_kit.urls import is_copy, named

READERS = 8  # threads that read files at once
WIDTH = 16  # bytes of a hash
BATCH = 1024  # files that a stop may lose
CONTAINERS = 4096  # tars and arrays whose size and time are kept, for their other members


def hash_files(paths: Sequence[Path], table: Table, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Keys of the contents of files, or of members of tars, uint64 (N, 2).

    A file is not read again if its path, size and time of change are in the table. The time of change is that of the
    content or of the inode, whichever is later, because a copy may keep the former. A file that cannot be read gets a
    key made of its path, and is tried again next time.

    Args:
        paths: files, or members of tars as in `data.images`.
        table: of known hashes; `WIDTH` items of uint8.
        rank: this process's number.
        world_size: processes that read files together.
    Raises:
        DiskError: the table cannot be written.
    """
    with ThreadPoolExecutor(READERS) as readers:
        job = ExtractionJob(lambda part: _load([paths[i] for i in part], readers), torch.from_numpy, batch_items=BATCH)
        rows = table.fill(stamp_keys(paths), job, rank, world_size)
    keys_N2 = np.empty((len(paths), 2), "<u8")
    for part in slices(len(paths)):
        keys_N2[part] = table.take(rows[part]).numpy().astype(np.uint8).view("<u8")
    for position in np.flatnonzero(table.unreadable(rows)).tolist():
        keys_N2[position] = np.frombuffer(_digest(paths[position])[0], "<u8")
    return keys_N2


def read_hashes(paths: Iterable[Path]) -> np.ndarray:
    """The same keys, of files that are all read now; nothing is kept."""
    with ThreadPoolExecutor(READERS) as readers:
        return np.frombuffer(b"".join(digest for digest, _ in readers.map(_digest, paths)), "<u8").reshape(-1, 2)


def stamp_keys(paths: Iterable[Path]) -> np.ndarray:
    """Keys of path, size and time of last change of some files, uint64 (N, 2)."""
    stamp_of = lru_cache(CONTAINERS)(_stamp)
    return hash_bytes(_name(path, stamp_of) for path in paths)


def _name(path: Path, stamp_of: Callable[[Path], bytes]) -> bytes:
    return os.fsencode(named(path.absolute())) + stamp_of(images.container(path))


def _stamp(container: Path) -> bytes:
    """Size and time of last change of a file, -1 and -1 if it cannot be found; of a copy, the version of its object."""
    if is_copy(container):
        return f"\0{stamps([container])[0]}".encode()
    try:
        status = container.stat()
        size, changed = status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)
    except OSError:
        size, changed = -1, -1
    return b"\0%d\0%d" % (size, changed)


def _load(paths: Sequence[Path], readers: ThreadPoolExecutor) -> tuple[np.ndarray, list[int]]:
    found = list(readers.map(_digest, paths))
    hashes_B16 = np.frombuffer(b"".join(digest for digest, _ in found), np.uint8).reshape(-1, WIDTH)
    return hashes_B16.copy(), [place for place, (_, read) in enumerate(found) if not read]


def _digest(path: Path) -> tuple[bytes, bool]:
    """A hash, and whether it is of the file's content (otherwise it is of its path)."""
    try:
        content, read = images.read_bytes(path), True
    except OSError:
        content, read = b"unreadable " + os.fsencode(path), False
    return hashlib.blake2b(content, digest_size=WIDTH).digest(), read
