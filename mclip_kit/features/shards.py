"""Shards: the files of a table. A shard is whole or is known to be unfinished.

TABLE/NAME/            a whole shard; NAME is a hash of its keys
    shard.json         rows, items, width, dtype, tool version; whether rows have other than one item; checksums of the
                       next three files
    keys.bin           uint64 (rows, 2), the content key of each row
    offsets.bin        int64 (rows + 1,), where each row's items start; a pooled row has one item, a sentence has one
                       item a token
    unreadable.bin     uint8 (rows,), 1 where the input could not be read; the items of that row are zeros
    sums.bin           uint32 (rows,), a checksum of each row, which every read compares
    values.bin         (items, width)
    scales.bin         float32 (items,), int8 only
    blocks.bin         (rows, checksum, items) of each batch, in the order in which the batches were computed; the
                       checksum covers the block's position too, so a block that was written twice is not sound
TABLE/NAME.part/       the same files while they are filled, see shard_writer.py

Shards of earlier versions have no sums.bin; such a shard is verified as a whole before it is read.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.data.arrays import spans
from mclip_kit.errors import MALFORMED, DataError
from mclip_kit.features.copies import SHARD, VALUES, bring_shard, brought, discard, open_brought
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.urls import is_copy

BLOCK = np.dtype([("rows", "<u4"), ("checksum", "<u4"), ("items", "<u8")])
KEYS, OFFSETS, UNREADABLE, SUMS = "keys.bin", "offsets.bin", "unreadable.bin", "sums.bin"
CHECKED = (KEYS, OFFSETS, UNREADABLE)  # files that have a checksum in shard.json
PIECE = 1 << 18  # keys that are read at once
READ = 1 << 22  # bytes that are read at once to compute a checksum


class DamagedShard(DataError):
    """A shard that is not as it was written.

    Attributes:
        folder: the shard's.
    """

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(f"{folder}: damaged: {why}")
        self.folder = folder


def shard_name(keys_N2: np.ndarray) -> str:
    """The name of the shard that has these rows."""
    return hashlib.blake2b(np.ascontiguousarray(keys_N2).tobytes(), digest_size=8).hexdigest()


class Shard:
    """A whole shard, for reading.

    It keeps no file open and does not map its files: a map would count as memory for all rows that were ever read.

    Args:
        folder: the shard's.
        item_format: of its table.

    Attributes:
        rows, items: how many it has.
        checks_rows: whether it has a checksum a row; those of earlier versions have none.
        ragged: whether some row has other than one item.
    Raises:
        DamagedShard: shard.json is damaged, or a file does not have the length that shard.json says.
    """

    def __init__(self, folder: Path, item_format: ItemFormat) -> None:
        self.folder, self.item_format = folder, item_format
        try:
            self._written = self._time()
            wrong = self._describe(json.loads(brought(folder / SHARD).read_text(encoding="utf-8")))
        except (OSError, *MALFORMED) as error:
            raise DamagedShard(folder, str(error)) from None
        if wrong:
            raise DamagedShard(folder, f"the length of {wrong[0]} is not what shard.json says")

    def _describe(self, facts: dict[str, Any]) -> list[str]:
        """Take what shard.json says; returns the files that have another length."""
        item_format, files = self.item_format, {KEYS: 16, OFFSETS: 8, UNREADABLE: 1}
        self.rows, self.items, self.checks_rows = int(facts["rows"]), int(facts["items"]), "checksums" in facts
        if (facts["width"], facts["dtype"]) != (item_format.width, item_format.dtype):
            raise ValueError("shard.json has another width or dtype than its table")
        if self.checks_rows:
            files[SUMS] = 4
            self._checksums = {name: int(facts["checksums"][name]) for name in CHECKED}
            self.ragged = bool(facts["ragged"])
        else:
            self._head, self.ragged = int(facts["checksum"]), True
        counts = {name: self.rows + (name == OFFSETS) for name in files}
        sizes = {**item_format.files, **files}
        return [
            name
            for name, size in sizes.items()
            if name not in VALUES or not is_copy(self.folder) or (self.folder / name).exists()
            if brought(self.folder / name).stat().st_size != counts.get(name, self.items) * size
        ]

    def _time(self) -> tuple[int, int]:
        status = (self.folder / SHARD).stat()
        return status.st_ino, status.st_mtime_ns

    def is_current(self) -> bool:
        """Whether the shard on the disk is the one that was opened, and was not removed or computed again."""
        try:
            return self._time() == self._written
        except OSError:
            return False

    @property
    def keys_N2(self) -> np.ndarray:
        """Content keys, uint64 (rows, 2)."""
        return np.concatenate([np.zeros((0, 2), "<u8"), *self.read_keys()])

    def read_keys(self) -> Iterator[np.ndarray]:
        """Content keys, uint64 (rows, 2), a piece after the other.

        Raises:
            DamagedShard: they are not as they were written; it is raised after the last piece.
        """
        checksum = 0
        with open(open_brought(self.folder / KEYS), "rb") as handle:
            while content := handle.read(16 * PIECE):
                checksum = zlib.crc32(content, checksum)
                yield np.frombuffer(content, "<u8").reshape(-1, 2)
        if checksum != self._checksums[KEYS] if self.checks_rows else not self.head_is_sound():
            raise DamagedShard(self.folder, f"{KEYS} has another checksum than when it was written")

    def head_is_sound(self) -> bool:
        """Whether the files that have a checksum in shard.json are as they were written."""
        if self.checks_rows:
            return all(file_checksum(self.folder / name) == value for name, value in self._checksums.items())
        return file_checksum(self.folder / OFFSETS, file_checksum(self.folder / KEYS)) == self._head

    @property
    def unreadable_N(self) -> np.ndarray:
        """Whether each row's input could not be read, bool (rows,)."""
        content = brought(self.folder / UNREADABLE).read_bytes()
        if self.checks_rows and zlib.crc32(content) != self._checksums[UNREADABLE]:
            raise DamagedShard(self.folder, f"{UNREADABLE} has another checksum than when it was written")
        return np.frombuffer(content, bool)

    @cached_property
    def _offsets_N(self) -> np.ndarray:
        return np.fromfile(brought(self.folder / OFFSETS), "<i8")

    def bounds(self, local_R: np.ndarray) -> np.ndarray:
        """Where the items of each row start and end, int64 (R, 2); the end is exclusive.

        Args:
            local_R: places of rows, int (R,).
        """
        if not self.ragged:
            return np.stack([local_R, local_R + 1], 1)
        if not self.checks_rows:
            return np.stack([self._offsets_N[local_R], self._offsets_N[local_R + 1]], 1)
        runs = spans(local_R, np.ones_like(local_R))
        offsets = np.frombuffer(self._read(OFFSETS, 8, [(start, length + 1) for start, length in runs]), "<i8")
        last = np.cumsum([length + 1 for _, length in runs]) - 1
        bounds_R2 = np.stack([np.delete(offsets, last), np.delete(offsets, np.append(0, last[:-1] + 1))], 1)
        if bounds_R2.min() < 0 or bounds_R2.max() > self.items or (bounds_R2[:, 0] > bounds_R2[:, 1]).any():
            raise DamagedShard(self.folder, f"{OFFSETS} has another content than when it was written")
        return bounds_R2

    def take(self, local_R: np.ndarray, bounds_R2: np.ndarray) -> np.ndarray:
        """Items of some rows, one row after the other, float32 (items, width).

        Args:
            local_R: places of rows, int (R,).
            bounds_R2: their `bounds`.
        Raises:
            DamagedShard: the checksum of a row is wrong.
        """
        files = self.item_format.files
        runs = spans(bounds_R2[:, 0], bounds_R2[:, 1] - bounds_R2[:, 0])
        contents = [self._read(name, size, runs) for name, size in files.items()]
        if self.checks_rows:
            places = spans(local_R, np.ones_like(local_R)) if self.ragged else runs
            known_R = np.frombuffer(self._read(SUMS, 4, places), "<u4")
            if not np.array_equal(row_checksums(bounds_R2, contents, list(files.values())), known_R):
                raise DamagedShard(self.folder, "a row has another content than when it was written")
        return self.item_format.decode(contents)

    def _read(self, name: str, size: int, runs: list[tuple[int, int]]) -> bytes:
        """Entries start .. start + length - 1 of a file, of `size` bytes each, for each pair of start and length."""
        file = self._open(name)
        try:
            content = b"".join([os.pread(file, length * size, start * size) for start, length in runs])
        finally:
            os.close(file)
        if len(content) != size * sum(length for _, length in runs):
            raise DamagedShard(self.folder, f"{name} is shorter than when it was written")
        return content

    def _open(self, name: str) -> int:
        try:
            return open_brought(self.folder / name)
        except FileNotFoundError:
            if is_copy(self.folder):
                raise DamagedShard(self.folder, f"{name} is missing") from None
            raise


def row_checksums(bounds_R2: np.ndarray, contents: Sequence[bytes], sizes: Sequence[int]) -> np.ndarray:
    """A checksum of each row, uint32 (R,): of where its items start and end, and of their content.

    Args:
        bounds_R2: where the items of each row start and end in the shard, int64 (R, 2).
        contents: for each file of the item format, the items of these rows, one row after the other.
        sizes: bytes of an item in each file.
    """
    heads = memoryview(np.ascontiguousarray(bounds_R2, "<i8").tobytes())
    ends = np.cumsum(bounds_R2[:, 1] - bounds_R2[:, 0]).tolist()
    files = [(memoryview(content), size) for content, size in zip(contents, sizes, strict=True)]
    found, start = [], 0
    for row, end in enumerate(ends):
        checksum = zlib.crc32(heads[16 * row : 16 * row + 16])
        for content, size in files:
            checksum = zlib.crc32(content[start * size : end * size], checksum)
        found.append(checksum)
        start = end
    return np.array(found, "<u4")


def is_sound(folder: Path, item_format: ItemFormat) -> bool:
    """Whether every checksum of a whole shard is right; reads all of it, in object storage that of its copy.

    Raises:
        StorageError: it cannot be brought.
    """
    bring_shard(folder, values=True)
    if is_copy(folder) and not _is_sound(folder, item_format):
        discard(folder)  # perhaps only the copy is damaged
        bring_shard(folder, values=True)
    return _is_sound(folder, item_format)


def _is_sound(folder: Path, item_format: ItemFormat) -> bool:
    try:
        shard, blocks = Shard(folder, item_format), np.fromfile(folder / "blocks.bin", BLOCK)
        return (
            shard.head_is_sound()
            and count_sound_blocks(folder, item_format, blocks) == len(blocks)
            and (int(blocks["rows"].sum()), int(blocks["items"].sum())) == (shard.rows, shard.items)
        )
    except (DataError, OSError, *MALFORMED):
        return False


def file_checksum(path: Path, checksum: int = 0) -> int:
    """The checksum of a file's content, after other content that has the given one."""
    with open(open_brought(path), "rb") as handle:
        while content := handle.read(READ):
            checksum = zlib.crc32(content, checksum)
    return checksum


def growing_files(folder: Path, item_format: ItemFormat) -> dict[str, tuple[str, int]]:
    """The files that a block adds to, in the order of its checksum: what is counted, and bytes of each."""
    rows = {UNREADABLE: 1, SUMS: 4} if (folder / SUMS).exists() else {UNREADABLE: 1}
    return {
        **{name: ("rows", size) for name, size in rows.items()},
        **{name: ("items", size) for name, size in item_format.files.items()},
    }


def count_sound_blocks(folder: Path, item_format: ItemFormat, blocks: np.ndarray) -> int:
    """How many blocks, from the first on, have the content that their checksum says."""
    files = growing_files(folder, item_format)
    handles = [(open(folder / name, "rb"), *how) for name, how in files.items()]  # noqa: SIM115
    try:
        starts = np.cumsum(blocks["rows"], dtype=np.int64) - blocks["rows"]
        for number, block in enumerate(blocks):
            checksum = int(starts[number])
            for handle, counted, size in handles:
                left = int(block[counted]) * size
                while left:
                    content = handle.read(min(left, READ))
                    if not content:
                        return number
                    checksum, left = zlib.crc32(content, checksum), left - len(content)
            if checksum != block["checksum"]:
                return number
        return len(blocks)
    finally:
        for handle, *_ in handles:
            handle.close()
