"""Write a file or a folder whole or not at all (temporary name next to it, rename); lock a path; format bytes."""

import errno
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mclip_kit.disk import check_new, disk_errors
from mclip_kit.errors import BusyError, DiskError

POLL = 0.02  # seconds between two attempts to get a lock that another process holds
PATIENCE = 0.5  # seconds in which a process that has got a lock writes that it has it
OLD, OLD_TEMPORARY = 3, 7 * 24
"""Hours after which a temporary file of another machine counts as left over; those of a run are read for days."""
LEFTOVER = re.compile(r"(?:\..+\.|mclip_kit-)(\d+)-([0-9a-f]{8})(?:\.part(?:\..+)?|-.+)")
OTHER = "wait for it, or choose another --out"
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""A network file system without locks; a file that only its holder creates is the lock there."""


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
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            _remove(temporary)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which does not exist; on success it becomes `folder` in one step.

    If the block raises, nothing is left.

    Raises:
        BusyError: another process writes it.
        DiskError: the disk is full, fails or is read-only.
    """
    with disk_errors(folder), hold(folder, remedy=OTHER):
        if folder.is_dir() and os.listdir(folder):  # another process has just finished
            check_new(folder)
        part = temporary_name(folder)
        shutil.rmtree(part, ignore_errors=True)  # of an earlier process that had this one's number
        try:
            part.mkdir()
            yield part
            move(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def move(part: Path, folder: Path) -> None:
    """Give a folder its final name, after all of it is on the disk."""
    for file in part.rglob("*"):
        if file.is_file():
            _flush(file)
    part.rename(folder)


def _flush(file: Path) -> None:
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


def temporary_name(path: Path) -> Path:
    """Where a file or folder is until it has its name, or after it has lost it: hidden, beside it."""
    return path.with_name(f".{path.stem}.{os.getpid()}-{place()}.part{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders in a folder whose process was killed.

    Those of a living process stay. Whether one of another machine lives is not known: what it left is removed when
    nothing in it has changed for `OLD` hours, or `OLD_TEMPORARY` in the system's temporary folder.
    """
    with suppress(OSError):
        for name in os.listdir(folder):
            found = LEFTOVER.fullmatch(name)
            if found and _is_left(folder / name, int(found[1]), found[2], OLD if name[0] == "." else OLD_TEMPORARY):
                with suppress(OSError):
                    path = folder / name
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_left(path: Path, pid: int, where: str, hours: float) -> bool:
    if where == place():
        return not is_alive(pid)
    with suppress(OSError):
        changed = max(file.lstat().st_mtime for file in (path, *path.rglob("*")))
        return time.time() - changed > hours * 3600
    return False


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


def readable(size: float, digits: int = 2) -> str:
    """A number of bytes as text: in GB from 0.1 GB on, else in MB."""
    return f"{size / 1e9:.{digits}f} GB" if size >= 1e8 else f"{size / 1e6:.{digits}f} MB"


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a path for the block; yields whether this process has it.

    The lock is a hidden file `.NAME.lock` in the path's folder, which is created if it is missing; the path itself may
    be missing, renamed or removed meanwhile. The system releases the lock when the process ends, also when it is
    killed; then the file stays, empty, and the next process takes it over. A process cannot lock a path twice.

    On a network file system that refuses locks, the file `.NAME.softlock` is the lock. One that a process of this
    machine left when it was killed is taken over; one of another machine must be removed by hand.

    Args:
        path: a file or a folder; only its name and its folder count.
        wait: whether to wait for another process that has the lock.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # here: the command line starts faster, doctor needs none

    timeout = -1 if wait else 0
    lock: FileLock | SoftFileLock = FileLock(_hidden(path, "lock"))
    try:
        with disk_errors(path):
            try:
                lock.acquire(timeout=timeout, poll_interval=POLL)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                with suppress(OSError):
                    os.unlink(lock.lock_file)
                lock = SoftFileLock(_hidden(path, "softlock"))
                lock.acquire(timeout=timeout, poll_interval=POLL)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # Windows removes it when the lock is released
            os.unlink(lock.lock_file)  # before the release: processes that wait look again which file has the name
        lock.release()


@contextmanager
def hold(folder: Path, name: str = "", doing: str = "writes to it", remedy: str = "wait for it") -> Iterator[None]:
    """Hold the lock of a folder for the block, as `locked` does; no other process that asks for it can have it.

    >>> with hold(Path("runs/mine"), "run", "trains there"):
    ...     pass

    Args:
        folder: what is written to.
        name: the lock is `.NAME.lock` in the folder, which is created if it is missing; without a name, it is beside
            the folder.
        doing: what another process does that has the lock, and
        remedy: what to do then, for the message.
    Raises:
        BusyError: another process has the lock: which one, on which machine, since when, and its command.
    """
    path = folder / name
    holder = _hidden(path, "holder")
    with ExitStack() as stack:
        if not path.parent.exists():
            stack.callback(_remove, path.parent)
        if not stack.enter_context(locked(path)):
            raise BusyError(f"{folder}: another process {doing}{_who(holder)}; {remedy}")
        about = {"pid": os.getpid(), "place": place(), "host": platform.node(), "command": _command()}
        with suppress(OSError, DiskError):  # the lock counts, not who has it
            write_json(holder, {**about, "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        stack.callback(_remove, holder)
        yield


def _remove(path: Path) -> None:
    """Remove a file, or a folder if it is empty; nothing else happens if that fails."""
    with suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.{kind}")


def _who(holder: Path) -> str:
    """Which process has a lock, as words for a message; empty if it did not say so.

    What a process left that was killed on this machine does not count: the one that has the lock now writes it again.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(holder.read_text(encoding="utf-8"))
            if about["place"] != place() or is_alive(int(about["pid"])):
                return f" (process {about['pid']} on {about['host']} since {about['since']}: {about['command']})"
        time.sleep(POLL)
    return ""


def _command() -> str:
    """The command line of this process, at most 100 characters."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else ["python"]
    command = shlex.join(words)
    return command if len(command) <= 100 else f"{command[:97].rsplit(' ', 1)[0]} ..."


@cache
def place() -> str:
    """This machine since it started, and this container, as 8 hex digits: a process's number counts only here."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), os.readlink("/proc/self/ns/pid")]
    return hashlib.blake2b("\0".join(facts).encode(), digest_size=4).hexdigest()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine lives; one that has ended and that its parent did not ask for does not."""
    if os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user, or a system without /proc
        return True
