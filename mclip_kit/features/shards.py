"""Shards: the files of a table. A shard is whole or is known to be unfinished.

TABLE/NAME/            a whole shard; NAME is a hash of its keys
    shard.json         rows, items, width, dtype, tool version; checksum of the next two files
    keys.bin           uint64 (rows, 2), the content key of each row
    offsets.bin        int64 (rows + 1,), where each row's items start; a pooled row has one item, a sentence has one
                       item a token
    unreadable.bin     uint8 (rows,), 1 where the input could not be read; the items of that row are zeros
    values.bin         (items, width)
    scales.bin         float32 (items,), int8 only
    blocks.bin         (rows, checksum, items) of each batch, in the order in which the batches were computed; the
                       checksum covers the block's position too, so a block that was written twice is not sound
TABLE/NAME.part/       the same files while they are filled, see shard_writer.py
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mclip_kit.errors import MALFORMED, DataError

Dtype = Literal["fp16", "fp32", "int8"]
DTYPES: dict[Dtype, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4"), "int8": np.dtype("i1")}
BLOCK = np.dtype([("rows", "<u4"), ("checksum", "<u4"), ("items", "<u8")])
UNREADABLE = "unreadable.bin"
READ = 1 << 22  # bytes that are read at once to compute a checksum


class NonfiniteOutput(DataError):
    """A frozen tower's output that cannot be stored; `FrozenTowers` adds which tower's."""


@dataclass(frozen=True)
class ItemFormat:
    """How a table stores its items.

    int8 halves the disk of token states: five captions each of CC3M's 560,000 pictures at about 15 tokens of 768
    numbers take 65 GB in fp16 and 33 GB in int8.

    Attributes:
        width: numbers of an item.
        dtype: type of a stored number; int8 has one float32 scale an item.
    """

    width: int
    dtype: Dtype

    @property
    def files(self) -> dict[str, int]:
        """The files that hold items, and the bytes that an item takes in each."""
        values = {"values.bin": self.width * DTYPES[self.dtype].itemsize}
        return {**values, "scales.bin": 4} if self.dtype == "int8" else values

    @property
    def item_bytes(self) -> int:
        """Bytes of an item in all files."""
        return sum(self.files.values())

    def encode(self, values_ND: np.ndarray) -> list[bytes]:
        """Items, float (N, width), as bytes for each of `files`.

        Raises:
            NonfiniteOutput: a value is non-finite (NaN or inf), or too large for fp16.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.dtype == "int8":
                scales_N = np.maximum(np.abs(values_ND).max(1), 1e-12) / 127
                stored, more = np.rint(values_ND / scales_N[:, None]), [scales_N.astype("<f4").tobytes()]
            else:
                stored, more = values_ND.astype(DTYPES[self.dtype]), []
        if not np.isfinite(stored).all():
            finite = np.isfinite(values_ND).all()
            if not finite:
                raise NonfiniteOutput("an output is not finite (NaN or inf)")
            raise NonfiniteOutput("an output is too large for fp16: set cache.dtype=fp32")
        return [stored.astype(DTYPES[self.dtype]).tobytes(), *more]

    def decode(self, contents: Sequence[bytes]) -> np.ndarray:
        """The opposite of `encode`: items, float32 (N, width)."""
        values_ND = np.frombuffer(contents[0], DTYPES[self.dtype]).reshape(-1, self.width).astype(np.float32)
        if self.dtype == "int8":
            values_ND *= np.frombuffer(contents[1], "<f4")[:, None]
        return values_ND


def shard_name(keys_N2: np.ndarray) -> str:
    """The name of the shard that has these rows."""
    return hashlib.blake2b(np.ascontiguousarray(keys_N2).tobytes(), digest_size=8).hexdigest()


class Shard:
    """A whole shard, for reading.

    It keeps no file open and does not map its files: a map would count as memory for all rows that were ever read.

    Args:
        folder: the shard's.
        item_format: of its table.
    Raises:
        DataError: shard.json is damaged, or a file does not have the length that shard.json says.
    """

    def __init__(self, folder: Path, item_format: ItemFormat) -> None:
        self.folder, self.item_format = folder, item_format
        try:
            self.facts: dict[str, Any] = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
            self.rows, self.items = int(self.facts["rows"]), int(self.facts["items"])
            if (self.facts["width"], self.facts["dtype"]) != (item_format.width, item_format.dtype):
                raise ValueError("shard.json has another width or dtype than its table")
            sizes = {**item_format.files, "keys.bin": 16, "offsets.bin": 8, UNREADABLE: 1}
            counts = {"keys.bin": self.rows, "offsets.bin": self.rows + 1, UNREADABLE: self.rows}
            wrong = [n for n, size in sizes.items() if (folder / n).stat().st_size != counts.get(n, self.items) * size]
        except (OSError, *MALFORMED) as error:
            raise DataError(f"{folder}: damaged: {error}") from None
        if wrong:
            raise DataError(f"{folder / wrong[0]}: damaged: its length is not what shard.json says")

    @property
    def keys_N2(self) -> np.ndarray:
        """Content keys, uint64 (rows, 2)."""
        return np.fromfile(self.folder / "keys.bin", "<u8").reshape(-1, 2)

    @property
    def unreadable_N(self) -> np.ndarray:
        """Whether each row's input could not be read, bool (rows,)."""
        return np.fromfile(self.folder / UNREADABLE, bool)

    @cached_property
    def offsets_N(self) -> np.ndarray:
        """Where each row's items start, int64 (rows + 1,)."""
        return np.fromfile(self.folder / "offsets.bin", "<i8")

    def take(self, starts_R: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
        """Items start .. start + length - 1 of each row, one row after the other, float32 (items, width)."""
        new_R = np.append(True, starts_R[1:] != starts_R[:-1] + lengths_R[:-1])  # adjacent rows are one read
        spans = list(
            zip(starts_R[new_R].tolist(), np.add.reduceat(lengths_R, np.flatnonzero(new_R)).tolist(), strict=True)
        )
        contents = []
        for name, size in self.item_format.files.items():
            with open(self.folder / name, "rb", buffering=0) as handle:
                parts = [os.pread(handle.fileno(), length * size, start * size) for start, length in spans]
            contents.append(b"".join(parts))
        return self.item_format.decode(contents)


def is_sound(folder: Path, item_format: ItemFormat) -> bool:
    """Whether every checksum of a whole shard is right; reads all of it."""
    try:
        shard, blocks = Shard(folder, item_format), np.fromfile(folder / "blocks.bin", BLOCK)
        return (
            shard.facts["checksum"] == head_checksum(folder)
            and count_sound_blocks(folder, item_format, blocks) == len(blocks)
            and (int(blocks["rows"].sum()), int(blocks["items"].sum())) == (shard.rows, shard.items)
        )
    except (DataError, OSError, *MALFORMED):
        return False


def head_checksum(folder: Path) -> int:
    """The checksum of keys.bin and offsets.bin."""
    return zlib.crc32((folder / "offsets.bin").read_bytes(), zlib.crc32((folder / "keys.bin").read_bytes()))


def count_sound_blocks(folder: Path, item_format: ItemFormat, blocks: np.ndarray) -> int:
    """How many blocks, from the first on, have the content that their checksum says."""
    growing = {UNREADABLE: ("rows", 1), **{name: ("items", size) for name, size in item_format.files.items()}}
    handles = [(open(folder / name, "rb"), *how) for name, how in growing.items()]  # noqa: SIM115
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
