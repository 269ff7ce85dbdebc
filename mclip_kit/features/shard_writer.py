"""Fill shards, and remove damaged ones.

A shard is filled in TABLE/NAME.part/ and gets its name in one step when it is whole. A fill that was interrupted at any
moment resumes after the last sound block. Whoever fills or removes a shard holds the lock of TABLE/NAME, so any number
of processes may fill one table, and no two of them compute the same shard.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit import __version__
from mclip_kit.disk import disk_errors
from mclip_kit.features.copies import SHARD, bring_shard, deliver, is_whole, remove_remote, room_for
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.shards import (
    BLOCK,
    CHECKED,
    KEYS,
    OFFSETS,
    SUMS,
    UNREADABLE,
    count_sound_blocks,
    file_checksum,
    growing_files,
    is_sound,
    row_checksums,
)
from mclip_kit.files import flush
from mclip_kit.locks import locked
from mclip_kit.storage import announce
from mclip_kit.urls import is_copy


def part_folder(folder: Path) -> Path:
    """Where a shard is while it is filled."""
    return folder.with_name(f"{folder.name}.part")


@contextmanager
def claim_shard(folder: Path) -> Iterator[bool]:
    """Reserve a shard for the block; yields whether this process must fill it. If not, it is whole or reserved."""
    with locked(folder) as mine:
        if mine:
            bring_shard(folder)  # another machine may have filled it
        whole = is_whole(folder)
        if mine and whole:
            shutil.rmtree(part_folder(folder), ignore_errors=True)
        yield mine and not whole


def remove_damaged(folder: Path, item_format: ItemFormat) -> bool:
    """Remove a damaged shard; False if another process has removed it or computed it again meanwhile."""
    if not folder.exists():  # a lock would make its table's folder again
        return False
    with locked(folder, wait=True) as mine:
        if mine and folder.exists() and not is_sound(folder, item_format):
            shutil.rmtree(part_folder(folder), ignore_errors=True)
            if folder.exists():  # in one step: a removal that is killed leaves an unfinished shard
                os.replace(folder, part_folder(folder))
            shutil.rmtree(part_folder(folder), ignore_errors=True)
            remove_remote(folder)
            return True
    return False


class ShardWriter:
    """A shard that is being filled; it resumes after the last sound block of an interrupted attempt.

    Args:
        folder: of the shard when it is whole.
        item_format: of its table.
        keys_N2: content keys of all rows, uint64 (N, 2).
        offsets_N: where each row's items start, int64 (N + 1,).

    Attributes:
        rows, items: how many are written.
    """

    def __init__(self, folder: Path, item_format: ItemFormat, keys_N2: np.ndarray, offsets_N: np.ndarray) -> None:
        self.folder, self.item_format, self.offsets_N = folder, item_format, offsets_N
        self._part = part_folder(folder)
        room_for(folder, int(offsets_N[-1]) * item_format.item_bytes)
        with disk_errors(folder):
            self._open(keys_N2)

    def _open(self, keys_N2: np.ndarray) -> None:
        item_format = self.item_format
        self._part.mkdir(parents=True, exist_ok=True)
        for leftover in self._part.glob(".*"):  # of a process that was killed while it wrote shard.json
            leftover.unlink()
        self._write_head(keys_N2)
        names = ("blocks.bin", UNREADABLE, SUMS, *item_format.files)
        for name in names:
            (self._part / name).touch()
        blocks = self._usable_blocks()
        self.rows, self.items = int(blocks["rows"].sum()), int(blocks["items"].sum())
        counts, files = {"rows": self.rows, "items": self.items}, growing_files(self._part, item_format)
        lengths = {"blocks.bin": len(blocks) * BLOCK.itemsize}
        lengths |= {name: counts[counted] * size for name, (counted, size) in files.items()}
        for name, length in lengths.items():
            os.truncate(self._part / name, length)
        self._handles = {name: open(self._part / name, "ab") for name in names}  # noqa: SIM115

    def _usable_blocks(self) -> np.ndarray:
        """Blocks, from the first on, that are sound and end where one of these rows ends."""
        blocks = np.fromfile(self._part / "blocks.bin", BLOCK)
        blocks = blocks[: count_sound_blocks(self._part, self.item_format, blocks)]
        rows, items = (np.cumsum(blocks[name], dtype=np.int64) for name in ("rows", "items"))
        fit = (rows < len(self.offsets_N)) & (self.offsets_N[np.minimum(rows, len(self.offsets_N) - 1)] == items)
        return blocks[: int(np.argmin(np.append(fit, False)))]

    def _write_head(self, keys_N2: np.ndarray) -> None:
        wanted = {KEYS: np.ascontiguousarray(keys_N2, "<u8"), OFFSETS: self.offsets_N.astype("<i8")}
        for name, array in wanted.items():
            path = self._part / name
            if not path.is_file() or path.read_bytes() != array.tobytes():
                path.write_bytes(array.tobytes())
        (self._part / SHARD).unlink(missing_ok=True)

    def append(self, rows: int, values_ND: np.ndarray, unreadable: Sequence[int] = ()) -> None:
        """Write the items of the next rows as one block; its record in blocks.bin is written last.

        Args:
            rows: how many rows the block has.
            values_ND: their items, one row after the other, float (items, width).
            unreadable: which of these rows have no features, counted from 0.
        Raises:
            DataError: a value cannot be stored.
            DiskError: the disk is full; finished batches are kept.
        """
        assert self.offsets_N[self.rows + rows] == self.items + len(values_ND)
        flags_N = np.zeros(rows, np.uint8)
        flags_N[list(unreadable)] = 1
        encoded, files = self.item_format.encode(values_ND), self.item_format.files
        ends = self.offsets_N[self.rows : self.rows + rows + 1]
        sums_R = row_checksums(np.stack([ends[:-1], ends[1:]], 1), encoded, list(files.values()))
        contents = {UNREADABLE: flags_N.tobytes(), SUMS: sums_R.tobytes(), **dict(zip(files, encoded, strict=True))}
        checksum = self.rows
        for content in contents.values():
            checksum = zlib.crc32(content, checksum)
        contents["blocks.bin"] = np.array([(rows, checksum, len(values_ND))], BLOCK).tobytes()
        with disk_errors(self.folder):
            for name, content in contents.items():
                self._handles[name].write(content)
                self._handles[name].flush()
        self.rows, self.items = self.rows + rows, self.items + len(values_ND)

    def finish(self) -> None:
        """Make it a whole shard, in one step."""
        with disk_errors(self.folder):
            self._finish()

    def _finish(self) -> None:
        for handle in self._handles.values():
            os.fsync(handle.fileno())
        facts: dict[str, Any] = {
            "rows": self.rows,
            "items": self.items,
            "width": self.item_format.width,
            "dtype": self.item_format.dtype,
            "ragged": bool((np.diff(self.offsets_N) != 1).any()),
            "checksums": {name: file_checksum(self._part / name) for name in CHECKED},
            "tool": f"mclip_kit {__version__}",
        }
        temporary = self._part / f".{SHARD}"  # not by write_json, which would send it
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        flush(temporary)
        os.replace(temporary, self._part / SHARD)
        if is_copy(self.folder):  # perhaps some files of one that another machine sends now
            shutil.rmtree(self.folder, ignore_errors=True)
        announce(self._part, self.folder)
        os.replace(self._part, self.folder)
        deliver(self.folder)

    def close(self) -> None:
        """Close its files."""
        for handle in self._handles.values():
            with suppress(OSError):  # closing flushes, which fails again on a full disk
                handle.close()
