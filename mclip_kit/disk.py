"""What a full, failing or read-only disk raises, in every library's words, as one error that names the path."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mclip_kit.errors import DiskError, MclipError

AGAIN = "then run the command again (train: with --resume)"
ROOM, PLACE, CHECK = f"free some space, {AGAIN}", "choose another place", f"check the disk, {AGAIN}"
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ROOM),
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), {AGAIN}",
    errno.EROFS: PLACE,
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN), CHECK),
}
"""Error that only a disk gives -> what to do."""
NAMED = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.ENOTDIR), PLACE),
    errno.ENOENT: f"a file or folder was removed meanwhile; {AGAIN.removeprefix('then ')}",
}
"""Errors that mean the same if they name the file that is written -> what to do."""
SHORT = re.compile(
    r"PytorchStreamWriter|inline_container|\d+ requested and \d+ written|database or disk is full|disk I/O error"
    r"|encoder error -2|the disk is full, or fails"
)
"""What PyTorch, NumPy, SQLite and PIL say when not all could be written; they do not say why."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What libraries raise in the block when the disk is full, fails or is read-only becomes a DiskError of `path`.

    >>> with disk_errors(Path("index.faiss")):
    ...     faiss.write_index(index, "index.faiss")

    Args:
        path: the file or folder that the block writes. An OSError that names a file elsewhere stays what it is.
    """
    try:
        yield
    except Exception as error:  # PyTorch, safetensors, Arrow, SQLite and faiss have their own classes for it
        reason = disk_failure(error, path)
        if reason is None:
            raise
        raise DiskError(f"{path}: cannot be written: {reason}") from error


def disk_failure(error: Exception, path: Path) -> str | None:
    """Why a path could not be written, and what to do; None: the error is about something else."""
    hidden = f".{path.stem}."  # how the temporary file or folder begins that becomes the path
    if isinstance(error, MclipError) and not (
        isinstance(error, DiskError) and str(error.args[0]).startswith(str(path.with_name(hidden)))
    ):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.filename is not None:
        named, parent = Path(os.fsdecode(error.filename)).absolute(), path.absolute().parent
        if parent not in (named, *named.parents):
            return None
        first = "" if named == parent else named.relative_to(parent).parts[0]
        ours = named == parent or first.startswith((path.name, hidden))
        if ours and number in NAMED and (number != errno.ENOENT or first != path.name):  # that may be read, too
            return f"{error.strerror}; {NAMED[number]}"
    text = str(error)
    for code, advice in ADVICE.items():
        if number == code or os.strerror(code) in text or f"(os error {code})" in text:
            return f"{os.strerror(code)}; {advice}"
    return f"the disk is full, or fails; {ROOM}" if SHORT.search(text) else None
