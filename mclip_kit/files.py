"""Write a file or a folder whole or not at all (temporary name next to it, rename); hash and format."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mclip_kit.disk import ADVICE, CHECK, NAMED, PLACE, disk_errors
from mclip_kit.errors import CheckpointError, DiskError
from mclip_kit.locks import OTHER, place, remove, remove_leftovers, temporary_name
from mclip_kit.storage import announce, exists, hold, is_bucket, probe, send
from mclip_kit.urls import is_copy, named, with_urls

SMALL, RATIO = 1 << 24, 200  # bytes, and times its size, that anything packed may unpack to


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes `path` in one step.

    The temporary file keeps the target's suffix, because NumPy and PIL choose the format by it. If the block raises,
    `path` keeps its old content and the temporary file is removed. Its permissions are those that the umask gives.

    Raises:
        DiskError: the disk is full, fails or is read-only.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary = temporary_name(path)
        try:
            yield temporary
            follow_umask(temporary)
            flush(temporary)
            announce(temporary, path)
            os.replace(temporary, path)
        finally:
            remove(temporary)
    send(path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which does not exist; on success it becomes `folder` in one step.

    If the block raises, nothing is left.

    Raises:
        BusyError: another process writes it.
        DiskError: the disk is full, fails or is read-only.
    """
    with disk_errors(folder), hold(folder, remedy=OTHER):
        if is_copy(folder) or (folder.is_dir() and os.listdir(folder)):  # another process has just finished
            check_new(folder)
        if is_copy(folder):
            shutil.rmtree(folder, ignore_errors=True)  # copies of objects that are gone
        remove_leftovers(folder.parent)
        part = temporary_name(folder)
        shutil.rmtree(part, ignore_errors=True)  # of an earlier process that had this one's number
        try:
            part.mkdir()
            yield part
            move(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def relative(path: Path) -> str:
    """A path as it is typed in the current folder, if it is inside; else as it is."""
    here = Path.cwd()
    if is_copy(path):
        return named(path)
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def move(part: Path, folder: Path) -> None:
    """Give a folder its final name, after all of it is on the disk."""
    flush(part)
    announce(part, folder)
    part.rename(folder)
    send(folder)


def flush(path: Path) -> None:
    """Wait until a file, or all files in a folder, are on the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder in the system's temporary folder, which exists for the block.

    Raises:
        DiskError: there is no room for it, or for what the block writes there.
    """
    with temporary_directory() as name, disk_errors(Path(name)):
        yield Path(name)


def temporary_directory() -> "tempfile.TemporaryDirectory[str]":
    """A new folder in the system's temporary folder; it is removed with the object.

    Those of processes that were killed are removed first.

    Raises:
        DiskError: there is no room for it.
    """
    try:
        remove_leftovers(Path(tempfile.gettempdir()))
        return tempfile.TemporaryDirectory(prefix=f"mclip_kit-{os.getpid()}-{place()}-")
    except OSError as error:
        raise DiskError(f"no temporary folder: {error.strerror}; set TMPDIR to a folder that has room") from None


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a new one, or so the weights in a folder: safetensors lets their owner alone read.

    >>> follow_umask(Path("models/mine/encoder"))
    """
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    for file in path.glob("*.safetensors") if path.is_dir() else [path]:
        file.chmod(0o666 & ~umask)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; copies of objects are named by their URLs."""
    with write_whole(path) as temporary:
        temporary.write_text(with_urls(text), encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with non-ASCII letters as they are; bytes of file names that are not UTF-8 become escapes."""
    content = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_text(path, printable(content))


def printable(text: str) -> str:
    """A text as UTF-8 can hold it: bytes of file names that are not UTF-8 become escapes."""
    return text.encode(errors="backslashreplace").decode()


def unescaped(text: str) -> str:
    r"""The file name of which `printable` wrote this text.

    >>> unescaped(printable("caf\udce9.png")) == "caf\udce9.png"
    True
    """
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda match: chr(int(match[1], 16)), text)


def hash_files(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file, as `sha256sum` prints it, by several threads.

    Raises:
        OSError: of the first file that cannot be read.
    """

    def one(path: Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

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


def check_writable(path: Path) -> None:
    """Check that a file or a folder can be written, before hours of work; nothing is left.

    >>> check_writable(Path("runs/mine"))

    Raises:
        DiskError: it cannot: the disk is full or read-only, or this user may not.
        StorageError: it is in object storage, and cannot be written there.
    """
    if is_copy(path):
        probe(path)
    folder = path if path.is_dir() else path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise DiskError(f"{path}: cannot be written: {folder} is a file; {PLACE}")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        advice = (ADVICE | NAMED).get(error.errno or 0, CHECK)
        raise DiskError(f"{path}: cannot be written: {error.strerror}; {advice}") from None


def check_new(folder: Path) -> None:
    """CheckpointError if a folder exists that is to be written; DiskError if it cannot be written."""
    if exists(folder):
        raise CheckpointError(f"{folder}: exists already; {other_out(folder)}")
    check_writable(folder)


def other_out(folder: Path) -> str:
    """What to do if a folder that is to be written has other content; nobody is told to remove a bucket."""
    return f"name a folder in it: --out {folder}/NAME" if is_bucket(folder) else "remove it or choose another --out"
