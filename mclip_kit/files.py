"""Files are written whole or not at all: a temporary name beside the target, fsync, rename."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes `path` in one step.

    The temporary file keeps the target's suffix, so writers that look at it (NumPy, PIL) are content.
    Whatever goes wrong inside the block, `path` keeps its former content and nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON that keeps every script readable; in names that are not UTF-8, the odd bytes as escapes."""
    content = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_text(path, content.encode(errors="backslashreplace").decode())


def readable(size: float, digits: int = 2) -> str:
    """Bytes, for people: GB from 0.1 on, else MB."""
    return f"{size / 1e9:.{digits}f} GB" if size >= 1e8 else f"{size / 1e6:.{digits}f} MB"


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has the lock of a folder that is still where it was."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = os.stat(folder).st_ino == os.fstat(handle).st_ino
        except (BlockingIOError, FileNotFoundError):
            mine = False
        yield mine
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # processes that were started meanwhile have it open too
        os.close(handle)
