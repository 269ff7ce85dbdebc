"""Columns as raw arrays in a folder, written once and mapped by every process that reads them.

FOLDER/columns.json      facts, and name -> type, width (values of a row) and CRC-32 of each column
FOLDER/NAME.bin          a column

Shapes: N rows.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from mclip_kit.data.sequences import split
from mclip_kit.disk import disk_errors
from mclip_kit.errors import MALFORMED, DataError
from mclip_kit.files import move, write_json
from mclip_kit.locks import locked, remove_leftovers, temporary_name
from mclip_kit.storage import fetch, forget
from mclip_kit.urls import is_copy

COLUMNS = "columns.json"
ROWS = "rows"  # how names of folders of training rows start
READ = 1 << 22  # bytes that are read at once


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """A folder that is written once, whole or not at all; other processes that want it wait.

    Args:
        write: puts the files into the folder that it is given.
    Raises:
        DiskError: the disk is full, fails or is read-only.
    """
    fetch(folder, again=True)
    if is_whole(folder):
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            if not is_whole(folder):
                remove_leftovers(folder.parent)
                part = temporary_name(folder)
                for old in (part, folder):  # the folder: files of one that another machine sends now
                    shutil.rmtree(old, ignore_errors=True)
                try:
                    part.mkdir()
                    write(part)
                    move(part, folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder that is written once is there; from object storage, with its last file."""
    return (folder / COLUMNS).is_file() if is_copy(folder) else folder.is_dir()


def discard(folder: Path) -> None:
    """Remove a folder of columns, also from object storage."""
    shutil.rmtree(folder, ignore_errors=True)
    forget(folder / COLUMNS)
    forget(folder)


class ColumnWriter:
    """Writes columns, some rows at a time; use it as a context.

    Args:
        folder: exists, and is empty.
        facts: anything else that is kept with the columns, as JSON values; read at the end.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, facts
        self._known: dict[str, dict[str, Any]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "ColumnWriter":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._stack.close()
        if kind is None:
            write_json(self._folder / COLUMNS, {"facts": self._facts, "columns": self._known})

    def add(self, name: str, values: np.ndarray) -> None:
        """Append rows to a column; its first rows decide its type, and the length of a row."""
        values = np.ascontiguousarray(values)
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self._folder / f"{name}.bin").open("wb"))
            self._known[name] = {"type": values.dtype.str, "width": list(values.shape[1:]), "crc": 0}
        known = self._known[name]
        if values.dtype.str != known["type"]:
            raise TypeError(f"column {name} is {known['type']}, not {values.dtype.str}")
        known["crc"] = zlib.crc32(values.data, known["crc"])
        self._files[name].write(values.data)


def open_folder(folder: Path, verify: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts and the columns of a folder, memory-mapped; the time of its last use is now.

    Args:
        verify: whether all is read and compared with its checksums.
    Raises:
        DataError: it is damaged.
    """
    with suppress(OSError):  # the folder may be read-only
        os.utime(folder / COLUMNS)
    try:
        content = json.loads((folder / COLUMNS).read_text(encoding="utf-8"))
        columns = {name: _map(folder / f"{name}.bin", known, verify) for name, known in content["columns"].items()}
        return dict(content["facts"]), columns
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{folder}: damaged ({error}); remove it: it is made again") from None


def columns_are_sound(folder: Path) -> bool:
    """Whether all columns of a folder, and of the folders in it, are as they were written."""
    fetch(folder, again=True)
    try:
        for path in folder.rglob(COLUMNS):
            open_folder(path.parent)
    except (OSError, DataError):
        return False
    return True


def _map(path: Path, known: Mapping[str, Any], verify: bool) -> np.ndarray:
    dtype, width = np.dtype(known["type"]), tuple(known["width"])
    if verify:
        found = 0
        with open(path, "rb") as handle:
            while content := handle.read(READ):
                found = zlib.crc32(content, found)
        if found != known["crc"]:
            raise ValueError(f"{path.name}: a checksum is wrong")
    if not path.stat().st_size:
        return np.empty((0, *width), dtype)
    return np.asarray(np.memmap(path, dtype, "r")).reshape(-1, *width)


class Ragged(Sequence[np.ndarray]):
    """Rows of several values each, in one array.

    Args:
        values: of all rows, one after the other.
        ends_N: where each row ends.
    """

    def __init__(self, values: np.ndarray, ends_N: np.ndarray) -> None:
        self._values, self._ends_N = values, ends_N

    def __len__(self) -> int:
        return len(self._ends_N)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        index = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends_N[index - 1]) if index else 0
        return self._values[start : int(self._ends_N[index])]

    def run(self, part: slice) -> list[np.ndarray]:
        """Some rows, one after the other: start and stop, at least one row."""
        start = int(self._ends_N[part.start - 1]) if part.start else 0
        ends = self._ends_N[part]
        return split(self._values[start : int(ends[-1])], np.diff(ends, prepend=start))


class RaggedTexts(Sequence[str]):
    """Texts, as the UTF-8 bytes of all of them."""

    def __init__(self, values: np.ndarray, ends_N: np.ndarray) -> None:
        self._bytes = Ragged(values, ends_N)

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._bytes[index].tobytes().decode("utf-8")
