"""From object storage to this machine: copies are brought, kept up to date, and removed where room is short."""

import os
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mclip_kit.disk import disk_errors
from mclip_kit.errors import DataError, StorageError
from mclip_kit.locks import locked, remove_leftovers, temporary_name
from mclip_kit.progress import tqdm
from mclip_kit.storage.objects import (
    THREADS,
    UNSENT,
    VERSIONS,
    Facts,
    objects,
    read_record,
    record_of,
    records,
    storage_errors,
    system_of,
    version,
    write_record,
)
from mclip_kit.storage.sending import settle
from mclip_kit.urls import is_copy, named, root

SIZE = "MCLIP_KIT_STORAGE_SIZE"
"""Variable: how many GB the copies may take."""
GB = 50.0
OFTEN = 60.0  # seconds between two notes that a copy is used
LARGE = 1 << 26  # bytes from which a download shows a bar, and is the only one at its time

TRIES = 3  # of a folder whose objects are removed while it is brought

UNSEEN = 1 / 64  # of all room: what a process takes of it before it looks again at what is taken
_room: dict[tuple[Path, float], float] = {}
"""Folder of copies and how many bytes they may take -> bytes that this process takes without a look."""
_seen: dict[tuple[Path, Collection[str]], list[Path]] = {}
"""Place and patterns -> copies that this process has compared with their objects: it works with one version."""


class _Gone(StorageError):
    """What is brought has gone: another machine has removed an object, as with old indexes, or a folder here."""


def fetch(path: Path, only: Collection[str] = ("*",), again: bool = False) -> Path:
    """Bring the copy of a file, or of a folder with all that is in it, up to date; returns its path.

    What was changed here and could not be sent is sent first. Copies that were used longest ago are removed where they
    would take more than MCLIP_KIT_STORAGE_SIZE. A process compares a copy with its object once, so what it reads stays
    one version. If there is nothing at the place, there is nothing at the path.

    Args:
        path: what is about to be read; nothing happens unless it is a copy.
        only: patterns of the names of files in the folder that are brought.
        again: compare also what this process has compared before; for folders that grow.
    Raises:
        StorageError: it cannot be read, a package is missing, or it is larger than all copies may be.
    """
    if not is_copy(path):
        return path
    wanted = (path, tuple(only))
    if not again and wanted in _seen and all(map(_use, _seen[wanted])):
        return path
    with storage_errors(path), locked(_lock(path), wait=True):
        for left in reversed(range(TRIES)):
            try:
                chosen = _bring_up_to_date(path, only)
                break
            except _Gone:
                if not left:
                    raise
    for copy in chosen:
        _use(copy, 0.0)
    if chosen:
        _seen[wanted] = chosen
    return path


def _bring_up_to_date(path: Path, only: Collection[str]) -> list[Path]:
    """Do what `fetch` says; the copies that match."""
    found = objects(path)
    settle(path, found)
    _remove_gone(path, found)
    chosen = {copy: facts for copy, facts in found.items() if any(fnmatchcase(copy.name, one) for one in only)}
    _download({copy: facts for copy, facts in chosen.items() if not _is_current(copy, facts)}, chosen)
    return list(chosen)


def _use(copy: Path, often: float = OFTEN) -> bool:
    """Whether a copy is there; if so, and if it was not done lately, note that it is used."""
    try:
        facts, now = copy.stat(), time.time_ns()
        if now - facts.st_atime_ns > often * 1e9:
            os.utime(copy, ns=(now, facts.st_mtime_ns))
        return True
    except OSError:
        return False


def _lock(path: Path) -> Path:
    """What a process locks that brings a place."""
    return root() / VERSIONS / blake2b(str(path).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _is_current(copy: Path, facts: Facts) -> bool:
    """Whether a copy is the object; one that was changed here is what counts."""
    known = read_record(copy)
    try:
        size = copy.stat().st_size
    except OSError:
        return False
    return known is not None and (known.startswith(UNSENT) or (known == version(facts) and size == facts["size"]))


def _remove_gone(path: Path, there: Collection[Path]) -> None:
    """Remove copies whose objects are gone; files that are no copies of an object stay."""
    for copy in list(records(path)):
        if copy not in there and not (read_record(copy) or "").startswith(UNSENT):
            copy.unlink(missing_ok=True)
            record_of(copy).unlink(missing_ok=True)


def _download(objects: Mapping[Path, Facts], wanted: Collection[Path]) -> None:
    """Bring objects: small ones several at once, each large one alone."""
    if not objects:
        return
    size = sum(facts["size"] for facts in objects.values())
    make_room(size, wanted)
    for folder in {copy.parent for copy in objects}:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    with tqdm(total=size, desc="fetch", unit="B", unit_scale=True, leave=False, disable=size < LARGE) as bar:
        large = [copy for copy, facts in objects.items() if facts["size"] >= LARGE]
        small = [copy for copy in objects if copy not in {*large}]
        with ThreadPoolExecutor(min(THREADS, len(small) or 1)) as threads:
            try:
                for _ in threads.map(lambda copy: _bring(copy, objects[copy], bar), small):
                    pass
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        for copy in large:
            _bring(copy, objects[copy], bar)


def _bring(copy: Path, facts: Facts, bar: Any) -> None:
    from fsspec.callbacks import Callback  # here: the command line starts faster

    class Shown(Callback):
        def relative_update(self, inc: int = 1) -> None:
            bar.update(inc)

    with disk_errors(copy), storage_errors(copy):
        temporary = temporary_name(copy)
        try:
            try:
                system_of(copy)[0].get_file(facts["name"], str(temporary), callback=Shown())
            except FileNotFoundError:
                if not copy.parent.is_dir():
                    raise _Gone(
                        f"{copy.parent}: was removed on this machine while a copy was brought; run again"
                    ) from None
                raise _Gone(f"{named(copy)}: was removed while it was read; run again") from None
            if temporary.stat().st_size != facts["size"]:
                raise StorageError(f"{named(copy)}: changed while it was read; run again")
            record_of(copy).unlink(missing_ok=True)
            os.replace(temporary, copy)
        finally:
            temporary.unlink(missing_ok=True)
        write_record(copy, version(facts))


def make_room(size: int, wanted: Collection[Path] = ()) -> None:
    """Remove the copies that were used longest ago, until so many more bytes fit.

    To look at all copies takes 20 us each. After a look, a process takes some of the room that it found without another
    one; as other processes do the same, it is a small share of all.
    """
    most = _most()
    known_room = (root(), most)
    left = _room.get(known_room, 0.0) - size
    if left >= 0:
        _room[known_room] = left
        return
    taken = _remove_oldest(size, most, wanted)
    if taken + size > most:
        raise StorageError(
            f"{root()}: {size / 1e9:.2f} GB more do not fit into the {most / 1e9:g} GB that copies of objects may "
            f"take; set {SIZE} to more GB"
        )
    _room[known_room] = min(most - taken - size, UNSEEN * most)


def _remove_oldest(size: int, most: float, wanted: Collection[Path]) -> int:
    """Remove copies but the wanted ones until so many more bytes fit, or none is left; the bytes of those that stay."""
    copies = []
    for copy in records(root()):
        with suppress(OSError):
            copies.append((copy, copy.stat()))
    taken = sum(facts.st_size for _, facts in copies)
    for copy, facts in sorted(copies, key=lambda item: item[1].st_atime_ns):
        if taken + size <= most:
            break
        known = None if copy in wanted else read_record(copy)
        if known is not None and not known.startswith(UNSENT):
            copy.unlink(missing_ok=True)
            record_of(copy).unlink(missing_ok=True)
            taken -= facts.st_size
    return taken


def _most() -> float:
    try:
        return float(os.environ.get(SIZE, GB)) * 1e9
    except ValueError:
        raise DataError(f"{SIZE}={os.environ[SIZE]}: not a number of GB; write it as in {SIZE}=100") from None
