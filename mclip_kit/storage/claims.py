"""Claims: of two machines that would write the same place in object storage, one does.

A claim is the object `.NAME.claim` beside the place. It is created only if it is absent, says who has it, and is
renewed while it is held; one that was not renewed for `LEASE` seconds, by the clock of who watches it, is taken over.
s3://, gs:// and Azure create an object if it is absent in one step; of two that write to another storage at the same
moment, or take a claim over, the last one has it: both look again after `SETTLE` seconds.
"""

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

from mclip_kit import locks
from mclip_kit.errors import MALFORMED, BusyError, MclipError
from mclip_kit.progress import tqdm
from mclip_kit.storage.objects import storage_errors, system_of
from mclip_kit.urls import is_copy, root

RENEW, LEASE = 20.0, 90.0  # seconds between two renewals, and without one until a claim counts as left
SETTLE = 3.0  # seconds in which a request that has begun arrives
LOOK = 1.0  # seconds between two looks at a claim of another machine
ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Schemes whose file systems create an object only if it is absent, in one step."""

_lost: dict[Path, str] = {}
"""Places whose claims were taken over by another machine, and who has them."""


@contextmanager
def hold(folder: Path, name: str = "", doing: str = "writes to it", remedy: str = "wait for it") -> Iterator[None]:
    """Hold the lock of a folder for the block, as `locks.hold` does; in object storage, against other machines too.

    >>> with hold(Path("runs/mine"), "run", "trains there"):
    ...     pass

    Args:
        folder, name, doing, remedy: as of `locks.hold`.
    Raises:
        BusyError: another process has it: which one, on which machine, since when, and its command.
        StorageError: the claim cannot be read or written.
    """
    with ExitStack() as stack:
        stack.enter_context(locks.hold(folder, name, doing, remedy))
        if is_copy(folder):
            stack.enter_context(_claimed(folder, name, doing, remedy))
        yield


def check_claim(path: Path) -> None:
    """BusyError if another machine has taken over a place that contains this path: it must not be written any more."""
    for folder, who in list(_lost.items()):
        if path.is_relative_to(folder):
            raise BusyError(f"{folder}: another machine{who} has taken it over, because this one was away too long")


@contextmanager
def _claimed(folder: Path, name: str, doing: str, remedy: str) -> Iterator[None]:
    claim, ended = _Claim(folder, name), threading.Event()
    with storage_errors(folder, "claimed"):
        busy = claim.take()
    if busy is not None:
        raise BusyError(f"{folder}: another process {doing}{busy}; {remedy}")
    thread = threading.Thread(target=claim.renew_until, args=(ended,), name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _lost.pop(folder, None)
        claim.release()


class _Claim:
    """The claim of a place, as this process would have it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        hidden = "." + ".".join(filter(None, [folder.name, name, "claim"]))
        inside = len(folder.relative_to(root()).parts) < 3  # a bucket has nothing beside it
        self._system, self._remote = system_of(folder / hidden if inside else folder.with_name(hidden))
        self._scheme = folder.relative_to(root()).parts[0]
        about: dict[str, Any] = {
            "pid": os.getpid(),
            "at": time.time(),
            "place": locks.place(),
            "host": platform.node(),
            "command": locks.command(),
        }
        self._about = {**about, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "id": secrets.token_hex(8), "renewed": 0}

    def take(self) -> str | None:
        """Take the claim; who has it, as words for a message, if another process does."""
        found = self._read()
        if found is not None and not self._is_left(found):
            return _who(found)
        settled = found is None and self._create()
        if not settled:
            sleep(SETTLE)
        now = self._read()
        return None if self._is_mine(now) else _who(now)

    def renew_until(self, ended: threading.Event) -> None:
        """Renew the claim until the event, or until another machine has it."""
        while not ended.wait(RENEW):
            with suppress(MclipError), storage_errors(self._folder):  # the connection may come back
                found = self._read()
                if not self._is_mine(found):
                    _lost[self._folder] = _who(found)
                    return
                self._about["renewed"] += 1
                self._write()

    def release(self) -> None:
        """Give the claim back; one that cannot be removed is taken over when it is not renewed."""
        with suppress(MclipError), storage_errors(self._folder, "removed"):
            if self._is_mine(self._read()):
                self._system.rm_file(self._remote)

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("id") == self._about["id"]

    def _read(self) -> dict[str, Any] | None:
        """What the claim says; None if there is none."""
        self._system.invalidate_cache()
        try:
            return dict(json.loads(self._system.cat_file(self._remote)))
        except FileNotFoundError:
            return None
        except MALFORMED:
            return {}

    def _create(self) -> bool:
        """Create the claim if it is absent; whether that was one step, after which nobody else can have it."""
        try:
            self._system.pipe_file(self._remote, json.dumps(self._about).encode(), mode="create")
        except FileExistsError:
            return True  # another machine was faster, see `_read`
        except (TypeError, ValueError, NotImplementedError, OSError):  # a storage that cannot do it
            self._write()
            return False
        return self._scheme in ATOMIC

    def _write(self) -> None:
        self._system.pipe_file(self._remote, json.dumps(self._about).encode())

    def _is_left(self, found: dict[str, Any]) -> bool:
        """Whether the process that has the claim has ended; if so, the claim is taken over."""
        if found.get("place") == locks.place():
            left = not locks.is_alive(int(found.get("pid", 0)), found.get("at"))
        else:
            tqdm.write(f"{self._folder}: claimed by another machine{_who(found)}; waiting until it shows that it lives")
            left = not self._shows_life(found)
        if left:
            self._write()
        return left

    def _shows_life(self, found: dict[str, Any]) -> bool:
        """Whether a claim is renewed, or changes hands, within its lease; it is also over when it is given back."""
        end = time.monotonic() + LEASE
        while time.monotonic() < end:
            sleep(min(LOOK, RENEW))
            now = self._read()
            if now is None:
                return False
            if now != found:
                return True
        return False


def _who(found: dict[str, Any] | None) -> str:
    """Who has a claim, as words for a message; empty if it does not say so."""
    if not found or "pid" not in found:
        return ""
    return f" (process {found['pid']} on {found['host']} since {found['since']}: {found['command']})"
