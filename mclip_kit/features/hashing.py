"""What features are known by: the content of an input, and everything that makes a tower's output what it is."""

import hashlib
import json
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
from tqdm import tqdm

from mclip_kit.data import images
from mclip_kit.errors import DataError

READERS = 8  # threads that read files at once


def of_bytes(contents: Iterable[bytes]) -> np.ndarray:
    """Keys of some contents, uint64 (N, 2): BLAKE2b, 128 bits."""
    digests = bytearray()
    for content in contents:
        digests += hashlib.blake2b(content, digest_size=16).digest()
    return np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)


def of_texts(texts: Iterable[str]) -> np.ndarray:
    """Keys of texts, uint64 (N, 2); they should be normalised by `plain` first."""
    return of_bytes(text.encode() for text in texts)


def of_tokens(tokens: Iterable[np.ndarray]) -> np.ndarray:
    """Keys of token ids, uint64 (N, 2)."""
    return of_bytes(np.asarray(ids, "<i4").tobytes() for ids in tokens)


def of_files(paths: Sequence[Path], memory: Path) -> np.ndarray:
    """Keys of the contents of files, or of members of tars, uint64 (N, 2).

    A file whose path, size and time of change (of its content or its inode: copies keep the former) are known from
    before is not read again. One that cannot be read gets a key of its own, which it loses when it can.

    Args:
        memory: an SQLite file of what is known; made if it is not there.
    Raises:
        DataError: `memory` cannot be read or written.
    """
    memory.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _of_files(paths, memory)
    except sqlite3.Error as error:
        raise DataError(f"{memory}: {error}; if it is damaged, remove it, and pictures are read anew") from None


def _of_files(paths: Sequence[Path], memory: Path) -> np.ndarray:
    with closing(sqlite3.connect(memory, timeout=60)) as base, ThreadPoolExecutor(READERS) as readers:
        base.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, changed INT, key BLOB)")
        find = "SELECT key FROM files WHERE path = ? AND size = ? AND changed = ?"
        stamps = [(str(path.absolute()), *_stamp(path)) for path in paths]
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


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = images.container(path).stat()
    except OSError:
        return -1, -1
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def _digest(path: Path) -> tuple[bytes, bool]:
    """A hash, and whether it is of the file's content."""
    try:
        content, read = images.read_bytes(path), True
    except OSError:
        content, read = f"unreadable {path}".encode(), False
    return hashlib.blake2b(content, digest_size=16).digest(), read


def plain(text: str) -> str:
    """A text with single spaces, as every tokenizer of open_clip reads it.

    Only ASCII's count: others, such as the no-break space, may be half of a letter that ftfy mends before.
    """
    return re.sub(r"[ \t\n\r]+", " ", text).strip(" ")


def of_tower(facts: dict[str, Any]) -> str:
    """A name for everything that decides a tower's output: 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def of_weights(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
