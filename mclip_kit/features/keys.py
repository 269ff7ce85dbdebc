"""What features are known by: the content of an input, and everything that makes a tower's output what it is."""

import hashlib
import json
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
    """Keys of files' contents, uint64 (N, 2).

    A file whose path, size and time of change are known from before is not read again. One that cannot be read gets a
    key of its own, which it loses when it can.

    Args:
        memory: an SQLite file of what is known; made if it is not there.
    """
    memory.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(memory, timeout=60)) as base, ThreadPoolExecutor(READERS) as readers:
        base.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, changed INT, key BLOB)")
        find = "SELECT key FROM files WHERE path = ? AND size = ? AND changed = ?"
        stamps = [(str(path.absolute()), *_stamp(path)) for path in paths]
        known = [base.execute(find, stamp).fetchone() for stamp in stamps]
        unknown = [number for number, row in enumerate(known) if row is None]
        found = readers.map(lambda number: _digest(paths[number]), unknown)
        bar = tqdm(found, "picture files: hash", len(unknown), leave=False, disable=len(unknown) < 1000, unit="file")
        digests = dict(zip(unknown, bar, strict=True))
        rows = [(*stamps[number], digest) for number, digest in digests.items() if stamps[number][1] >= 0]
        base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
        base.commit()
    content = b"".join(digests[number] if row is None else row[0] for number, row in enumerate(known))
    return np.frombuffer(content, "<u8").reshape(-1, 2)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError:
        content = f"unreadable {path}".encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def plain(text: str) -> str:
    """A text with single spaces, as every tokenizer reads it."""
    return " ".join(text.split())


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
