"""From this machine to object storage: files that were written whole are sent; what could not be is not lost."""

import os
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mclip_kit.errors import StorageError
from mclip_kit.progress import tqdm
from mclip_kit.storage.claims import check_claim
from mclip_kit.storage.objects import (
    THREADS,
    UNSENT,
    Facts,
    objects,
    read_record,
    record_of,
    records,
    storage_errors,
    system_of,
    unsent,
    version,
    write_record,
)
from mclip_kit.urls import is_copy, named

BLOCK = 1 << 22  # bytes that are compared at once
PROBE = "mclip-kit-can-write"
_together: list[Path] = []
"""Folders whose files are sent when all of them are written."""


def send(path: Path) -> None:
    """Write a file, or all files of a folder, to where its copy belongs; nothing happens unless it is a copy.

    Files go in the order in which they were written, so that what makes a folder whole comes last. Hidden files stay.

    Raises:
        BusyError: another machine has taken the place over, see `claims`.
        StorageError: it cannot be written there. It stays here, and is sent by the next command that reads it.
    """
    if not _is_sent_now(path):
        return
    check_claim(path)
    files = _files(path)
    for file in files:
        mark(file)
    for file in files:
        _upload(file)


def mark(copy: Path) -> None:
    """Note that a copy is changed here, and is to be sent; nothing happens unless it is a copy."""
    if is_copy(copy):
        known = read_record(copy)
        if known is None or not known.startswith(UNSENT):
            write_record(copy, UNSENT + (known or ""))


def announce(part: Path, path: Path) -> None:
    """Note that what is written at `part`, a file or a folder, is to be sent as `path`, just before it gets that name.

    So it is sent later if this process is killed before `send`. A note without a file, or of one that is as before, is
    harmless. Nothing happens unless `path` is a copy.
    """
    if _is_sent_now(path):
        for file in [part] if part.is_file() else filter(Path.is_file, part.rglob("*")):
            mark(path / file.relative_to(part))


def _is_sent_now(path: Path) -> bool:
    """Whether a file is sent when it is written; not if it is no copy, or is sent together with others."""
    return is_copy(path) and not any(path.is_relative_to(folder) for folder in _together)


@contextmanager
def sent_together(folder: Path) -> Iterator[None]:
    """What is written in a folder in the block is sent at its end, in the order in which it was written."""
    _together.append(folder)
    try:
        yield
    finally:
        _together.remove(folder)
    send(folder)


def settle(path: Path, there: dict[Path, Facts]) -> None:
    """Send what was changed at a path and could not be sent, unless another machine has changed the object since.

    Args:
        there: the objects at the path; those that are sent are added.
    """
    waiting = unsent(path)
    for copy in waiting:
        if not copy.is_file():
            record_of(copy).unlink(missing_ok=True)
    for copy in sorted(filter(Path.is_file, waiting), key=_written):
        before = (read_record(copy) or "").removeprefix(UNSENT)
        if before == (version(there[copy]) if copy in there else ""):
            there[copy] = _upload(copy)
        elif copy in there and _holds(there[copy], copy):  # sent by a process that was killed before it noted so
            write_record(copy, version(there[copy]))
        else:
            tqdm.write(f"{named(copy)}: was changed elsewhere since it was written here and not sent; that is taken")
            write_record(copy, before)


def _holds(facts: Facts, copy: Path) -> bool:
    """Whether an object holds the bytes of a file; if not, it is brought anyway."""
    system, remote = system_of(copy)
    with storage_errors(copy), open(copy, "rb") as here:
        if facts["size"] != copy.stat().st_size:
            return False
        with system.open(remote, "rb") as there:
            return all(there.read(len(block)) == block for block in iter(lambda: here.read(BLOCK), b""))


def send_rest(path: Path) -> int:
    """Send what was changed at a path and below it and could not be sent, whatever is there; returns how many files."""
    files = [copy for copy in unsent(path) if copy.is_file()] if is_copy(path) else []
    for copy in sorted(files, key=_written):
        _upload(copy)
    return len(files)


def forget(path: Path) -> None:
    """Remove what a copy is of, or all in a folder, after the copy was removed; nothing happens unless it is one."""
    if not is_copy(path):
        return
    with storage_errors(path, "removed"):
        system, _ = system_of(path)
        found = [facts["name"] for facts in objects(path).values()]
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(system.rm_file, found))
        system.invalidate_cache()
    for copy in list(records(path)):
        record_of(copy).unlink(missing_ok=True)


def copy_object(old: Path, new: Path) -> None:
    """Give what a copy is of a second name, after the copy itself was renamed; nothing happens unless it is one.

    The bytes do not leave the storage.
    """
    if not is_copy(old):
        return
    with storage_errors(new, "written"):
        (system, before), (_, after) = system_of(old), system_of(new)
        try:
            system.copy(before, after)
        except FileNotFoundError:  # somebody has removed it there
            send(new)
            return
        write_record(new, version(objects(new)[new]))


def probe(path: Path) -> None:
    """Check that a place in object storage can be written, before hours of work; nothing is left.

    Raises:
        StorageError: it cannot.
    """
    with storage_errors(path, "written"):
        system, remote = system_of(path)
        name = f"{remote.rstrip('/')}.{PROBE}-{os.getpid()}"
        system.pipe_file(name, b"")
        system.rm_file(name)
        system.invalidate_cache()


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder that are not hidden, in the order in which they were written."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and is_copy(file)]
    return sorted(files, key=_written)


def _written(file: Path) -> tuple[int, str]:
    return file.stat().st_mtime_ns, str(file)


def _upload(file: Path) -> Facts:
    """Send a file, and note which version of the object it is."""
    try:
        with storage_errors(file, "written"):
            system, remote = system_of(file)
            size = file.stat().st_size
            system.put_file(str(file), remote)
            facts = objects(file)[file]
            if facts["size"] != size:
                raise StorageError(f"{named(file)}: has {facts['size']} bytes there, not {size}")
    except StorageError as error:
        again = shlex.join(["mclip-kit", "data", "send", named(file)])
        raise StorageError(f"{error}; it is kept on this machine; send it again with: {again}") from None
    write_record(file, version(facts))
    return facts
