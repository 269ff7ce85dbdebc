"""Locks: of two processes that would write the same file or folder, one does."""

import errno
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from mclip_kit.disk import disk_errors
from mclip_kit.errors import BusyError

CLOCKS = 2.0  # seconds by which the clocks of a file system and of processes may differ
POLL = 0.02  # seconds between two attempts to get a lock that another process holds
PATIENCE = 0.5  # seconds in which a process that has got a lock writes that it has it
OTHER = "wait for it, or choose another --out"
OLD, OLD_TEMPORARY = 3, 7 * 24
"""Hours after which a temporary file of another machine counts as left over; those of a run are read for days."""
LEFTOVER = re.compile(r"(?:\..+\.|mclip_kit-)(\d+)-([0-9a-f]{8})(?:\.part(?:\..+)?|-.+)")
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""A network file system without locks; a file that only its holder creates is the lock there."""


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
            stack.callback(remove, path.parent)
        if not stack.enter_context(locked(path)):
            soft = _hidden(path, "softlock")
            gone = f"; if that machine went down, remove {soft}" if soft.exists() else ""
            raise BusyError(f"{folder}: another process {doing}{_who(holder)}; {remedy}{gone}")
        about = {"pid": os.getpid(), "place": place(), "host": platform.node(), "command": command()}
        with suppress(OSError):  # the lock counts, not who has it
            holder.write_text(json.dumps({**about, "since": time.strftime("%Y-%m-%d %H:%M:%S")}), encoding="utf-8")
        stack.callback(remove, holder)
        yield


def remove(path: Path) -> None:
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


def command() -> str:
    """The command line of this process, at most 100 characters."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else ["python"]
    command = shlex.join(words)
    return command if len(command) <= 100 else f"{command[:97].rsplit(' ', 1)[0]} ..."


def temporary_name(path: Path) -> Path:
    """Where a file or folder is until it has its name, or after it has lost it: hidden, beside it."""
    return path.with_name(f".{path.stem}.{os.getpid()}-{place()}.part{path.suffix}")


@cache
def place() -> str:
    """This machine since it started, and this container, as 8 hex digits: a process's number counts only here."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), os.readlink("/proc/self/ns/pid")]
    return hashlib.blake2b("\0".join(facts).encode(), digest_size=4).hexdigest()


def is_alive(pid: int, at: float | None = None) -> bool:
    """Whether a process of this machine lives; one that has ended and that its parent did not ask for does not.

    Args:
        pid: its number, which another process may have got since.
        at: a time at which the wanted one lived; one that has started later is another.
    """
    if os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
        facts = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        started = int(facts[19]) / os.sysconf("SC_CLK_TCK") - time.clock_gettime(time.CLOCK_BOOTTIME) + time.time()
        return facts[0] not in (b"Z", b"X") and (at is None or started <= at + CLOCKS)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user, or a system without /proc
        return True


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
        return not is_alive(pid, path.lstat().st_ctime)
    with suppress(OSError):
        changed = max(file.lstat().st_mtime for file in (path, *path.rglob("*")))
        return time.time() - changed > hours * 3600
    return False
