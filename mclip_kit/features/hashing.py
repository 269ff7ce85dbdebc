"""Hashes that identify features: of the content of an input, and of everything that decides a tower's output."""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mclip_kit.data import images
from mclip_kit.disk import disk_errors
from mclip_kit.errors import DataError
from mclip_kit.progress import tqdm

READERS = 8  # threads that read files at once


def hash_bytes(contents: Iterable[bytes]) -> np.ndarray:
    """Keys of some contents, uint64 (N, 2): BLAKE2b, 128 bits."""
    digests = bytearray()
    for content in contents:
        digests += hashlib.blake2b(content, digest_size=16).digest()
    return np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Keys of texts, uint64 (N, 2); pass texts through `normalize_spaces` first."""
    return hash_bytes(text.encode() for text in texts)


def hash_tokens(tokens: Iterable[np.ndarray]) -> np.ndarray:
    """Keys of token ids, uint64 (N, 2)."""
    return hash_bytes(np.asarray(ids, "<i4").tobytes() for ids in tokens)


def hash_files(paths: Sequence[Path], database: Path) -> np.ndarray:
    """Keys of the contents of files, or of members of tars, uint64 (N, 2).

    A file is not read again if its path, size and time of change are in the database. The time of change is that of the
    content or of the inode, whichever is later, because a copy may keep the former. A file that cannot be read gets a
    key made of its path; this key is not stored, so the file is tried again next time.

    Args:
        paths: files, or members of tars as in `data.images`.
        database: an SQLite file of known hashes; it is created if it is missing.
    Raises:
        DataError: the database cannot be read.
        DiskError: it cannot be written.
    """
    try:
        with disk_errors(database):
            database.parent.mkdir(parents=True, exist_ok=True)
            return _hash_files(paths, database)
    except sqlite3.Error as error:
        raise DataError(f"{database}: {error}; if it is damaged, remove it: pictures are then hashed again") from None


def _hash_files(paths: Sequence[Path], database: Path) -> np.ndarray:
    with closing(sqlite3.connect(database, timeout=60)) as base, ThreadPoolExecutor(READERS) as readers:
        base.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, changed INT, key BLOB)")
        find = "SELECT key FROM files WHERE path = ? AND size = ? AND changed = ?"
        stamps = [(_name(path), *_stamp(path)) for path in paths]
        known = [base.execute(find, stamp).fetchone() for stamp in stamps]
        unknown = [number for number, row in enumerate(known) if row is None]
        found = readers.map(lambda number: _digest(paths[number]), unknown)
        bar = tqdm(found, "picture files: hash", len(unknown), leave=False, disable=len(unknown) < 1000, unit="file")
        digests = dict(zip(unknown, bar, strict=True))
        rows = [(*stamps[number], digest) for number, (digest, read) in digests.items() if read]
        base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
        base.commit()
    content = b"".join(digests[number][0] if row is None else row[0] for number, row in enumerate(known))
    return np.frombuffer(content, "<u8").reshape(-1, 2)


def _name(path: Path) -> str:
    """An absolute path; bytes that are not UTF-8 are escaped, as SQLite holds none."""
    return os.fsencode(path.absolute()).decode(errors="backslashreplace")


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of last change of a file; -1, -1 if it cannot be found."""
    try:
        status = images.container(path).stat()
    except OSError:
        return -1, -1
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def _digest(path: Path) -> tuple[bytes, bool]:
    """A hash, and whether it is of the file's content (otherwise it is of its path)."""
    try:
        content, read = images.read_bytes(path), True
    except OSError:
        content, read = b"unreadable " + os.fsencode(path), False
    return hashlib.blake2b(content, digest_size=16).digest(), read


def normalize_spaces(text: str) -> str:
    """A text with single spaces, as every tokenizer of open_clip reads it.

    Only ASCII spaces count. Others, such as the no-break space, may be half of a letter that ftfy repairs first.
    """
    return re.sub(r"[ \t\n\r]+", " ", text).strip(" ")


def hash_tower(facts: dict[str, Any]) -> str:
    """A hash of everything that decides a tower's output: 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def hash_weights(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
