"""Shards: files of features that are whole or known not to be.

TABLE/NAME/            a whole shard; NAME is a hash of its keys
    shard.json         rows, items, width, dtype, tool version; checksum of the two files that follow
    keys.bin           uint64 (rows, 2), the content key of each row
    offsets.bin        int64 (rows + 1,), where each row's items start; a pooled row has one item, a sentence its tokens
    unreadable.bin     uint8 (rows,), 1 where the input could not be read; that row's items are zeros
    values.bin         (items, width)
    scales.bin         float32 (items,), int8 only
    blocks.bin         (rows, checksum, items) of each batch, in the order in which they were computed; the checksum is
                       of the place too, so a block that two processes wrote is no sound one
TABLE/NAME.part/       the same while it is filled: what blocks.bin vouches for is kept, the rest computed anew

A shard that is being filled is locked by a lock on its folder, which ends with the process, however it ends. So any
number of processes may fill one table, and none of them computes what another one is at.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mclip_kit import __version__
from mclip_kit.errors import DataError
from mclip_kit.files import locked, write_json

Dtype = Literal["fp16", "fp32", "int8"]
DTYPES: dict[Dtype, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4"), "int8": np.dtype("i1")}
BLOCK = np.dtype([("rows", "<u4"), ("checksum", "<u4"), ("items", "<u8")])
UNREADABLE = "unreadable.bin"
READ = 1 << 22  # bytes read at once while checksums are computed


@dataclass(frozen=True)
class Layout:
    """What every shard of a table agrees on: items of `width` numbers, stored as `dtype`."""

    width: int
    dtype: Dtype

    @property
    def files(self) -> dict[str, int]:
        """The files of items, and their bytes an item."""
        values = {"values.bin": self.width * DTYPES[self.dtype].itemsize}
        return {**values, "scales.bin": 4} if self.dtype == "int8" else values

    @property
    def item_bytes(self) -> int:
        """Bytes an item takes."""
        return sum(self.files.values())

    def encode(self, values_ND: np.ndarray) -> list[bytes]:
        """The content of each growing file for some items.

        Raises:
            DataError: a value is not finite, or too large for fp16.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.dtype == "int8":
                scales_N = np.maximum(np.abs(values_ND).max(1), 1e-12) / 127
                coded, parts = np.rint(values_ND / scales_N[:, None]), [scales_N.astype("<f4").tobytes()]
            else:
                coded, parts = values_ND.astype(DTYPES[self.dtype]), []
        if not np.isfinite(coded).all():
            known = "not finite" if not np.isfinite(values_ND).all() else "too large for fp16: set cache.dtype=fp32"
            raise DataError(f"a frozen tower's output is {known}")
        return [coded.astype(DTYPES[self.dtype]).tobytes(), *parts]

    def decode(self, contents: Sequence[bytes]) -> np.ndarray:
        """Items, float32 (N, width), of some items' part of each file."""
        values_ND = np.frombuffer(contents[0], DTYPES[self.dtype]).reshape(-1, self.width).astype(np.float32)
        if self.dtype == "int8":
            values_ND *= np.frombuffer(contents[1], "<f4")[:, None]
        return values_ND


def shard_name(keys_N2: np.ndarray) -> str:
    """A shard's name."""
    return hashlib.blake2b(np.ascontiguousarray(keys_N2).tobytes(), digest_size=8).hexdigest()


class Shard:
    """A whole shard. It holds no file open, and reads the rows that it is asked for: a map would be as large in memory
    as all that was read of it.

    Raises:
        DataError: its description is damaged, or a file has another length than it says.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        try:
            self.facts: dict[str, Any] = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
            self.rows, self.items = int(self.facts["rows"]), int(self.facts["items"])
            if (self.facts["width"], self.facts["dtype"]) != (layout.width, layout.dtype):
                raise ValueError("shard.json is of other features")
            sizes = {**layout.files, "keys.bin": 16, "offsets.bin": 8, UNREADABLE: 1}
            counts = {"keys.bin": self.rows, "offsets.bin": self.rows + 1, UNREADABLE: self.rows}
            wrong = [n for n, size in sizes.items() if (folder / n).stat().st_size != counts.get(n, self.items) * size]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: damaged: {error}") from None
        if wrong:
            raise DataError(f"{folder / wrong[0]}: damaged: not as long as shard.json says")

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
        """Items start .. start + length - 1 of each row, one row's after the other, float32 (items, width)."""
        new_R = np.append(True, starts_R[1:] != starts_R[:-1] + lengths_R[:-1])  # neighbours are read at once
        spans = list(
            zip(starts_R[new_R].tolist(), np.add.reduceat(lengths_R, np.flatnonzero(new_R)).tolist(), strict=True)
        )
        contents = []
        for name, size in self.layout.files.items():
            with open(self.folder / name, "rb", buffering=0) as handle:
                parts = [os.pread(handle.fileno(), length * size, start * size) for start, length in spans]
            contents.append(b"".join(parts))
        return self.layout.decode(contents)

    def is_sound(self) -> bool:
        """Whether every checksum is right; reads the whole shard."""
        try:
            blocks = np.fromfile(self.folder / "blocks.bin", BLOCK)
            head = self.facts["checksum"] == _head_checksum(self.folder)
            return (
                head
                and _sound_blocks(self.folder, self.layout, blocks) == len(blocks)
                and (int(blocks["rows"].sum()), int(blocks["items"].sum())) == (self.rows, self.items)
            )
        except (OSError, KeyError, ValueError):
            return False


def reopen(folder: Path) -> None:
    """Make a shard a part again, so that what is sound of it is kept and the rest computed anew."""
    with locked(folder, wait=True) as mine:
        while mine and folder.exists():
            with suppress(FileExistsError):
                part_folder(folder).mkdir()
            with locked(part_folder(folder), wait=True) as free:  # nobody begins to fill it meanwhile
                if free:
                    for leftover in part_folder(folder).iterdir():
                        leftover.unlink()
                    os.replace(folder, part_folder(folder))


def part_folder(folder: Path) -> Path:
    """Where a shard is while it is filled."""
    return folder.with_name(f"{folder.name}.part")


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether a shard that is not whole is this process's to fill; while it is, no other gets it."""
    part = part_folder(folder)
    with suppress(FileExistsError):  # `exist_ok` looks again, when another process may have finished it
        part.mkdir(parents=True)
    with locked(part) as mine:
        whole = folder.exists()
        if mine and whole:
            shutil.rmtree(part, ignore_errors=True)
        yield mine and not whole


class Part:
    """A shard that is being filled; goes on behind the last sound block of an earlier attempt.

    Args:
        folder: of the shard when it is whole.
        keys_N2, offsets_N: of all its rows.
    """

    def __init__(self, folder: Path, layout: Layout, keys_N2: np.ndarray, offsets_N: np.ndarray) -> None:
        self.folder, self.layout, self.offsets_N = folder, layout, offsets_N
        self._part = part_folder(folder)
        for leftover in self._part.glob(".*"):  # of a process that was killed while it wrote shard.json
            leftover.unlink()
        self._write_head(keys_N2)
        names = ("blocks.bin", UNREADABLE, *layout.files)
        for name in names:
            (self._part / name).touch()
        blocks = self._sound_blocks()
        self.rows, self.items = int(blocks["rows"].sum()), int(blocks["items"].sum())
        lengths = {"blocks.bin": len(blocks) * BLOCK.itemsize, UNREADABLE: self.rows}
        lengths |= {name: self.items * size for name, size in layout.files.items()}
        for name, length in lengths.items():
            os.truncate(self._part / name, length)
        self._handles = {name: open(self._part / name, "ab") for name in names}  # noqa: SIM115

    def _sound_blocks(self) -> np.ndarray:
        """What can be kept: blocks from the start on whose content is right, and which are of these rows."""
        blocks = np.fromfile(self._part / "blocks.bin", BLOCK)
        blocks = blocks[: _sound_blocks(self._part, self.layout, blocks)]
        rows, items = (np.cumsum(blocks[name], dtype=np.int64) for name in ("rows", "items"))
        fit = (rows < len(self.offsets_N)) & (self.offsets_N[np.minimum(rows, len(self.offsets_N) - 1)] == items)
        return blocks[: int(np.argmin(np.append(fit, False)))]

    def _write_head(self, keys_N2: np.ndarray) -> None:
        wanted = {"keys.bin": np.ascontiguousarray(keys_N2, "<u8"), "offsets.bin": self.offsets_N.astype("<i8")}
        for name, array in wanted.items():
            path = self._part / name
            if not path.is_file() or path.read_bytes() != array.tobytes():
                path.write_bytes(array.tobytes())
        (self._part / "shard.json").unlink(missing_ok=True)

    def append(self, rows: int, values_ND: np.ndarray, unreadable: Sequence[int] = ()) -> None:
        """Write the next rows' items; blocks.bin vouches for them when they are there.

        Args:
            unreadable: which of these rows have no features.
        """
        assert self.offsets_N[self.rows + rows] == self.items + len(values_ND)
        flags_N = np.zeros(rows, np.uint8)
        flags_N[list(unreadable)] = 1
        coded = [flags_N.tobytes(), *self.layout.encode(values_ND)]
        contents = dict(zip((UNREADABLE, *self.layout.files), coded, strict=True))
        checksum = self.rows
        for content in contents.values():
            checksum = zlib.crc32(content, checksum)
        contents["blocks.bin"] = np.array([(rows, checksum, len(values_ND))], BLOCK).tobytes()
        try:
            for name, content in contents.items():
                self._handles[name].write(content)
                self._handles[name].flush()
        except OSError as error:  # such as a full disk; of an open file, the system does not say which
            raise DataError(f"{self._part}: {error.strerror}; what is written stays") from None
        self.rows, self.items = self.rows + rows, self.items + len(values_ND)

    def finish(self) -> None:
        """Make it a whole shard, in one step."""
        for handle in self._handles.values():
            os.fsync(handle.fileno())
        facts: dict[str, Any] = {
            "rows": self.rows,
            "items": self.items,
            "width": self.layout.width,
            "dtype": self.layout.dtype,
        }
        facts |= {"checksum": _head_checksum(self._part), "tool": f"mclip_kit {__version__}"}
        write_json(self._part / "shard.json", facts)
        os.replace(self._part, self.folder)

    def close(self) -> None:
        """Close its files."""
        for handle in self._handles.values():
            with suppress(OSError):  # a full disk, once more
                handle.close()


def _head_checksum(folder: Path) -> int:
    return zlib.crc32((folder / "offsets.bin").read_bytes(), zlib.crc32((folder / "keys.bin").read_bytes()))


def _sound_blocks(folder: Path, layout: Layout, blocks: np.ndarray) -> int:
    """How many blocks from the start on have the content that their checksum says. Reads, does not map."""
    grow = {UNREADABLE: ("rows", 1), **{name: ("items", size) for name, size in layout.files.items()}}
    handles = [(open(folder / name, "rb"), *how) for name, how in grow.items()]  # noqa: SIM115
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
