"""The index of a table: where each key is. It is memory-mapped, so millions of rows open at once.

TABLE/index-NAMES.bin has three columns, uint64 each, sorted by the first: high half of the key, low half, shard and
place. A checksum of the columns follows. NAMES is a hash of the shards' names.
"""

import hashlib
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from mclip_kit.features.shards import READ, Shard
from mclip_kit.files import write_whole
from mclip_kit.locks import locked

BITS = 32  # the lower bits of a row: its place in its shard; the upper bits: the shard's number
LOCAL = (1 << BITS) - 1
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def find(columns: Columns, keys_N2: np.ndarray) -> np.ndarray:
    """The row of each key, int64 (N,): its shard's number in the index and its place there; -1 if it has no row."""
    high_M, low_M, row_M = columns
    found_N = np.full(len(keys_N2), -1)
    if not len(high_M):
        return found_N
    place_N, left = np.searchsorted(high_M, keys_N2[:, 0]), np.arange(len(keys_N2))
    while len(left):  # keys that share their high half are adjacent
        left = left[place_N[left] < len(high_M)]
        left = left[high_M[place_N[left]] == keys_N2[left, 0]]
        here = low_M[place_N[left]] == keys_N2[left, 1]
        found_N[left[here]] = row_M[place_N[left[here]]].astype(np.int64)
        left = left[~here]
        place_N[left] += 1
    return found_N


def index_path(folder: Path, shards: list[Path]) -> Path:
    """The path of the index of some shards."""
    names = " ".join(sorted(shard.name for shard in shards))
    return folder / f"index-{hashlib.blake2b(names.encode(), digest_size=8).hexdigest()}.bin"


def index_is_sound(path: Path) -> bool:
    """Whether an index is as it was written: its last 8 bytes are a checksum of the others."""
    try:
        with open(path, "rb") as handle:
            left, checksum = path.stat().st_size - 8, 0
            while left > 0:
                content = handle.read(min(left, READ))
                left, checksum = left - len(content), zlib.crc32(content, checksum)
            return handle.read() == checksum.to_bytes(8, "little")
    except OSError:
        return False


def open_index(folder: Path, shards: list[Shard]) -> Columns:
    """Map the index of these shards; write it first, and remove those of other shards, if it is missing."""
    rows = sum(shard.rows for shard in shards)
    path = index_path(folder, [shard.folder for shard in shards])
    if not rows:
        empty = np.zeros(0, "<u8")
        return empty, empty, empty
    while (columns := _map(path, rows)) is None:  # another process may remove it before it is mapped
        with locked(folder / "index", wait=True):
            if _map(path, rows) is None:
                _write(path, shards)
            for old in {*folder.glob("index-*.bin")} - {path}:
                old.unlink(missing_ok=True)
    return columns


def _map(path: Path, rows: int) -> Columns | None:
    with suppress(FileNotFoundError):
        if path.stat().st_size == 24 * rows + 8:
            high_M, low_M, row_M = np.memmap(path, "<u8", "r")[:-1].reshape(3, rows)
            return high_M, low_M, row_M
    return None


def _write(path: Path, shards: list[Shard]) -> None:
    keys_N2 = np.concatenate([shard.keys_N2 for shard in shards])
    place_N = np.concatenate([(number << BITS) + np.arange(shard.rows) for number, shard in enumerate(shards)])
    order_N = np.argsort(keys_N2[:, 0], kind="stable")
    with write_whole(path) as temporary, open(temporary, "wb") as handle:
        checksum = 0
        for column_N in (keys_N2[:, 0], keys_N2[:, 1], place_N.view("<u8")):
            content = column_N[order_N].data
            checksum = zlib.crc32(content, checksum)
            handle.write(content)
        handle.write(checksum.to_bytes(8, "little"))
