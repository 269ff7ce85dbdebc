"""The index of a table: where each key is, in memory-mapped files, so millions of rows open at once.

TABLE/index-NAMES.bin  a part of the index, for some of the shards; NAMES is a hash of their names. It has three
                       columns, uint64 each, sorted by the first: high half of the key, low half, shard and place. Then
                       the shards' names (JSON), the number of rows, a mark, and a checksum of all this, 8 bytes each.

New shards get a part of their own, which takes in the parts that are not larger: there are few parts, and a row is
written a few times at most, however often a table grows. The name of a shard decides its keys and their order; so a
part stays right if a shard is removed, and if it is computed again.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mclip_kit.data.sequences import blocks_of
from mclip_kit.errors import MALFORMED
from mclip_kit.features.copies import open_brought
from mclip_kit.features.shards import PIECE, READ, Shard
from mclip_kit.files import write_whole
from mclip_kit.locks import locked
from mclip_kit.storage import forget

BITS = 32  # the lower bits of a row: its place in its shard; the upper bits: the shard's number
LOCAL = (1 << BITS) - 1
SMALL = 1 << 16  # rows of parts that are always merged
MARK = int.from_bytes(b"mclipidx", "little")
TAIL = 24  # bytes after the names
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class IndexPart:
    """A part of the index.

    Attributes:
        path: its file.
        names: the shards that it covers; the number of a shard in its rows is the place here.
        columns: mapped, uint64 (rows,) each.
    """

    path: Path
    names: list[str]
    columns: Columns

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.columns[0])


def find(columns: Columns, keys_N2: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
    """The row of each key, int64 (N,): its shard's number and its place there; -1 if it has no row.

    Sorted keys are found much faster: neighbours are then in the same memory pages.

    Args:
        columns: of a part.
        numbers: the number of each shard of the part, int64; -1 if it is not there. None: as in the part.
    """
    high_M, low_M, row_M = columns
    found_N = np.full(len(keys_N2), -1)
    if not len(high_M):
        return found_N
    place_N, left = np.searchsorted(high_M, keys_N2[:, 0]), np.arange(len(keys_N2))
    while len(left):  # keys that share their high half are adjacent
        left = left[place_N[left] < len(high_M)]
        left = left[high_M[place_N[left]] == keys_N2[left, 0]]
        row = row_M[place_N[left]].astype(np.int64)
        number = row >> BITS if numbers is None else numbers[row >> BITS]
        here = (low_M[place_N[left]] == keys_N2[left, 1]) & (number >= 0)
        found_N[left[here]] = (number[here] << BITS) + (row[here] & LOCAL)
        left = left[~here]
        place_N[left] += 1
    return found_N


def in_key_order(keys_N2: np.ndarray, positions: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Positions of keys in the order of the keys' high halves, about `PIECE` at a time; equal ones stay in order.

    It takes 4 bytes a key, and those of a piece.

    Args:
        positions: those that count, int (M,). None: all.
    """
    count = len(keys_N2) if positions is None else len(positions)
    next_ = _starts(keys_N2, positions, count)
    ends, order = [*next_[1:].tolist(), count], np.empty(count, np.uint32 if count < 1 << 32 else np.int64)
    for part in slices(count):
        high_M = keys_N2[part if positions is None else positions[part], 0]
        for piece, here in enumerate(_split(high_M, len(next_))):
            order[next_[piece] : next_[piece] + len(here)] = here + part.start
            next_[piece] += len(here)
    for start, end in zip([0, *ends], ends, strict=False):
        place = order[start:end].astype(np.int64) if positions is None else positions[order[start:end]]
        yield place[np.argsort(keys_N2[place, 0], kind="stable")]


def _starts(keys_N2: np.ndarray, positions: np.ndarray | None, count: int) -> np.ndarray:
    """Where each range of keys starts if keys are in order, int64 (pieces,)."""
    pieces = max(1, -(-count // PIECE))
    counts = np.zeros(pieces, np.int64)
    for part in slices(count):
        counts += _count(keys_N2[part if positions is None else positions[part], 0], pieces)
    return np.cumsum(counts) - counts


def _count(high_N: np.ndarray, pieces: int) -> np.ndarray:
    return np.bincount(_piece(high_N, pieces), minlength=pieces)


def _split(high_N: np.ndarray, pieces: int) -> list[np.ndarray]:
    """The places of each range's keys, in their order."""
    piece_N = _piece(high_N, pieces)
    return np.split(np.argsort(piece_N, kind="stable"), np.cumsum(np.bincount(piece_N, minlength=pieces))[:-1])


def _piece(high_N: np.ndarray, pieces: int) -> np.ndarray:
    """Which of so many equal ranges each high half is in; in 16 bits, which are sorted in linear time."""
    piece_N = (high_N >> np.uint64(32)) * np.uint64(pieces) >> np.uint64(32)
    return piece_N.astype(np.uint16 if pieces <= 1 << 16 else np.int64)


def slices(count: int) -> Iterator[slice]:
    """Parts of so many rows, `PIECE` of them each."""
    return blocks_of(count, PIECE)


def shard_numbers(row_N: np.ndarray) -> list[int]:
    """The numbers of the shards that have the rows, ascending; -1 is none."""
    found = set[int]()
    for part in slices(len(row_N)):
        found |= set(np.unique(row_N[part] >> BITS).tolist())
    return sorted(found - {-1})


def index_path(folder: Path, names: Sequence[str]) -> Path:
    """The path of the part for some shards."""
    return folder / f"index-{hashlib.blake2b(' '.join(sorted(names)).encode(), digest_size=8).hexdigest()}.bin"


def index_is_sound(path: Path) -> bool:
    """Whether a part is as it was written: its last 8 bytes are a checksum of the others."""
    try:
        with open(open_brought(path), "rb") as handle:
            return _checksum(handle, path.stat().st_size - 8) == int.from_bytes(handle.read(), "little")
    except OSError:
        return False


def _checksum(handle: IO[bytes], size: int) -> int:
    """The checksum of the next bytes."""
    checksum = 0
    while content := handle.read(max(0, min(size, READ))):
        size, checksum = size - len(content), zlib.crc32(content, checksum)
    return checksum


def open_index(folder: Path, shards: list[Shard]) -> list[IndexPart]:
    """Map the parts that cover these shards, the largest first; shards that none covers get one first.

    Raises:
        DamagedShard: the keys of a shard that none covers are not as they were written.
    """
    while True:  # another process may remove a part before it is mapped
        parts, left = _cover(folder, shards)
        if not left:
            return parts
        with locked(folder / "index", wait=True):
            parts, left = _cover(folder, shards)
            if left:
                _extend(folder, parts, left, shards)


def _cover(folder: Path, shards: list[Shard]) -> tuple[list[IndexPart], list[Shard]]:
    """The parts that are of use, and the shards that none covers."""
    names = {shard.folder.name for shard in shards if shard.rows}
    found = [part for path in folder.glob("index-*.bin") if (part := _map(path, shards)) is not None]
    used, covered = list[IndexPart](), set[str]()
    for part in sorted(found, key=lambda part: (-part.rows, part.path)):
        own = names.intersection(part.names) - covered
        if own:
            used.append(part)
            covered |= own
    return used, [shard for shard in shards if shard.folder.name in names - covered]


def _map(path: Path, shards: list[Shard]) -> IndexPart | None:
    """A part; None if it is not whole, or was removed."""
    with suppress(OSError, *MALFORMED), open(open_brought(path), "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        handle.seek(max(0, size - TAIL))
        rows, mark, _ = np.frombuffer(handle.read(), "<u8").tolist()
        if mark != MARK:
            return _map_earlier(path, shards)
        handle.seek(24 * rows)
        names = json.loads(handle.read(size - TAIL - 24 * rows))
        high_M, low_M, row_M = np.memmap(handle, "<u8", "r", shape=(3, rows))
        return IndexPart(path, names, (high_M, low_M, row_M))
    return None


def _map_earlier(path: Path, shards: list[Shard]) -> IndexPart | None:
    """The index of an earlier version, which covers all shards; its file's name and size say of which."""
    names, rows = [shard.folder.name for shard in shards], sum(shard.rows for shard in shards)
    if path != index_path(path.parent, names) or path.stat().st_size != 24 * rows + 8:
        return None
    high_M, low_M, row_M = np.memmap(path, "<u8", "r", shape=(3, rows))
    return IndexPart(path, names, (high_M, low_M, row_M))


def _extend(folder: Path, parts: list[IndexPart], left: list[Shard], shards: list[Shard]) -> None:
    """Write a part for shards that have none, with those of the parts that it takes in; remove the others."""
    names, rows, kept = {shard.folder.name for shard in left}, sum(shard.rows for shard in left), list[Path]()
    for part in sorted(parts, key=lambda part: (part.rows, part.path)):
        if kept or part.rows > max(rows, SMALL):
            kept.append(part.path)
        else:
            names, rows = names.union(part.names), rows + part.rows
    own = [shard for shard in shards if shard.folder.name in names]
    path = index_path(folder, [shard.folder.name for shard in own])
    _write(path, own)
    for old in {*folder.glob("index-*.bin")} - {path, *kept}:
        old.unlink(missing_ok=True)
        forget(old)


def _write(path: Path, shards: list[Shard]) -> None:
    """Write a part: rows go to the range of their keys, then each range is sorted, so memory is that of one range."""
    rows = sum(shard.rows for shard in shards)
    with write_whole(path) as temporary, open(temporary, "w+b") as handle:
        counts = np.zeros(max(1, -(-rows // PIECE)), np.int64)
        for shard in shards:
            for keys_N2 in shard.read_keys():
                counts += _count(keys_N2[:, 0], len(counts))
        ends = np.cumsum(counts)
        _scatter(handle, shards, ends - counts, rows)
        for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True):
            _sort(handle, start, end, rows)
        handle.seek(24 * rows)
        handle.write(json.dumps([shard.folder.name for shard in shards]).encode())
        handle.write(np.array([rows, MARK], "<u8").tobytes())
        size = handle.tell()
        handle.seek(0)
        checksum = _checksum(handle, size)
        handle.seek(size)
        handle.write(checksum.to_bytes(8, "little"))


def _scatter(handle: IO[bytes], shards: list[Shard], next_: np.ndarray, rows: int) -> None:
    """Write the rows of all shards, each to the range of its key.

    Args:
        next_: where each range starts, int64 (pieces,).
    """
    for number, shard in enumerate(shards):
        first = number << BITS
        for keys_N2 in shard.read_keys():
            for piece, here in enumerate(_split(keys_N2[:, 0], len(next_))):
                if len(here):
                    columns = keys_N2[here, 0], keys_N2[here, 1], (first + here).view("<u8")
                    _put(handle, columns, int(next_[piece]), rows)
                    next_[piece] += len(here)
            first += len(keys_N2)


def _put(handle: IO[bytes], columns: Sequence[np.ndarray], start: int, rows: int) -> None:
    for number, column in enumerate(columns):
        handle.seek(8 * (number * rows + start))
        handle.write(column.tobytes())


def _sort(handle: IO[bytes], start: int, end: int, rows: int) -> None:
    """Sort the rows of a range by their keys' high halves."""
    columns = []
    for number in range(3):
        handle.seek(8 * (number * rows + start))
        columns.append(np.frombuffer(handle.read(8 * (end - start)), "<u8"))
    order = np.argsort(columns[0], kind="stable")
    _put(handle, [column[order] for column in columns], start, rows)
