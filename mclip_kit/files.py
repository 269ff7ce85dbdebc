"""Write a file or a folder whole or not at all (temporary name next to it, rename); lock a path; hash and format."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

SMALL, RATIO = 1 << 24, 200  # bytes, and times its size, that anything packed may unpack to
POLL = 0.02  # seconds between two attempts to get a lock that another process holds


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes `path` in one step.

    The temporary file keeps the target's suffix, because NumPy and PIL choose the format by it. If the block raises,
    `path` keeps its old content and the temporary file is removed. Its permissions are those that the umask gives.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        follow_umask(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which does not exist; on success it becomes `folder` in one step.

    If the block raises, nothing is left.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a new one, or so the weights in a folder: safetensors lets their owner alone read.

    >>> follow_umask(Path("models/mine/encoder"))
    """
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    for file in path.glob("*.safetensors") if path.is_dir() else [path]:
        file.chmod(0o666 & ~umask)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with non-ASCII letters as they are; bytes of file names that are not UTF-8 become escapes."""
    content = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_text(path, content.encode(errors="backslashreplace").decode())


def hash_files(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file, as `sha256sum` prints it, by several threads.

    Raises:
        OSError: of the first file that cannot be read.
    """

    def one(path: Path) -> str:
        with open(path, "rb") as file:
            return file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as readers:
        return list(readers.map(one, paths))


def check_zip(path: Path) -> None:
    """ValueError if a zip would unpack to far more than its size, as no real table or weights do: a bomb."""
    with zipfile.ZipFile(path) as archive:
        check_unpacked(sum(info.file_size for info in archive.infolist()), path.stat().st_size)


def check_unpacked(unpacked: int, packed: int) -> None:
    """ValueError if so many bytes are far more than real content of so many packed ones."""
    if unpacked > SMALL and unpacked > RATIO * packed:
        raise ValueError(f"{readable(packed)} that unpack to {readable(unpacked)}; unpack it first, if you trust it")


def readable(size: float, digits: int = 2) -> str:
    """A number of bytes as text: in GB from 0.1 GB on, else in MB."""
    return f"{size / 1e9:.{digits}f} GB" if size >= 1e8 else f"{size / 1e6:.{digits}f} MB"


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a path for the block; yields whether this process has it.

    The lock is a hidden file `.NAME.lock` in the path's folder, which is created if it is missing; the path itself may
    be missing, renamed or removed meanwhile. The system releases the lock when the process ends, also when it is
    killed; then the file stays, empty, and the next process takes it over. A process cannot lock a path twice.

    Args:
        path: a file or a folder; only its name and its folder count.
        wait: whether to wait for another process that has the lock.
    """
    from filelock import FileLock, Timeout  # here: the command line starts faster, and doctor starts without it

    lock = FileLock(path.with_name(f".{path.name.lstrip('.')}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=POLL)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # Windows removes it when the lock is released
            os.unlink(lock.lock_file)  # before the release: processes that wait look again which file has the name
        lock.release()
