"""What is in a bucket: objects by the paths of their copies, their versions, and errors that name the URL."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from mclip_kit.errors import DataError, MclipError, StorageError, first_line
from mclip_kit.urls import URL, is_copy, named, root

VERSIONS = ".versions"
UNSENT = "unsent "
"""How the record of a copy begins that was changed here; the version follows that it was before."""
FACTS = ("ETag", "etag", "md5Hash", "crc32c", "blob_id", "LastModified", "mtime", "updated", "created", "last_commit")
"""What file systems say of an object that changes with its content; the first that is there counts."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> the extra of this package that has its file system."""
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError)
"""What is a mistake in a program, not in a URL or of a connection."""
OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only a disk of this machine gives."""
THREADS = 8  # requests at once
QUERY = re.compile(r"(?<=\w)\?[\w.~%+/:-]*=[^\s\"']*")
"""What is asked of an address, in an error of a connection; it names no place."""
CHECK = "check its name, your access to it and the connection"

Facts = Mapping[str, Any]
"""What a file system says of an object: at least its name there and its size."""


def place(name: str | Path) -> Path:
    """The path of a place that a user names: of the copy, if it is a URL.

    >>> place("data/coco")
    PosixPath('data/coco')
    >>> place("s3://bucket/coco").relative_to(root())
    PosixPath('s3/bucket/coco')

    Raises:
        DataError: a part of the URL is empty, or begins with a dot: such files stay on their machine.
    """
    found = URL.fullmatch(str(name))
    if not found:
        return Path(name)
    scheme, rest = found.groups()
    if scheme == "file":
        return Path(rest)
    parts = rest.removesuffix("/").split("/")
    if any(part[:1] in ("", ".") for part in parts):
        raise DataError(
            f"{name}: not a place in object storage; write it as in s3://BUCKET/FOLDER, without parts that are empty "
            "or begin with a dot"
        )
    return root().joinpath(scheme, *parts)


def system_of(path: Path) -> tuple[Any, str]:
    """The file system of a copy's object, and the object's name in it."""
    scheme, *rest = path.relative_to(root()).parts
    system = _system(scheme, os.getpid())
    return system, system._strip_protocol(f"{scheme}://{'/'.join(rest)}")


@cache
def _system(scheme: str, process: int) -> Any:
    """The file system of a scheme, for all threads of a process; a forked one needs its own."""
    import fsspec  # here: the command line starts faster

    try:
        return fsspec.filesystem(scheme)
    except TypeError:  # of ftp, sftp, ...: they want a host and a password
        raise ValueError(f"{scheme} needs more than a URL; use s3://, gs:// or hf://") from None


def objects(path: Path) -> dict[Path, Facts]:
    """The objects at a place and below it, by the paths of their copies; none if there is nothing.

    Raises:
        StorageError: a name cannot be that of a file here.
    """
    system, remote = system_of(path)
    system.invalidate_cache()
    found: dict[Path, Facts] = {}
    for name, facts in system.find(remote, detail=True).items():
        if facts.get("size") is None:
            raise StorageError(f"{named(path)}: {system.protocol} does not say how large objects are, and is not read")
        inside = name.removeprefix(remote).removeprefix("/")
        if inside.endswith("/") and not facts["size"]:
            continue  # what web pages of storage put there for a folder
        parts = inside.split("/") if inside else []
        if any(part in ("", "..", ".") for part in parts):
            raise StorageError(f"{named(path)}: the object {name!a} has no name that a file can have; rename it there")
        if not any(part[0] == "." for part in parts):
            found[path.joinpath(*parts)] = facts
    both = next((above for copy in found for above in copy.parents if above in found), None)
    if both:
        raise StorageError(f"{named(both)}: an object and a folder have this name; rename one of them")
    return found


def is_bucket(path: Path) -> bool:
    """Whether a path is that of a whole bucket."""
    return is_copy(path) and len(path.relative_to(root()).parts) == 2


def lacking_bucket(copy: Path) -> Path | None:
    """The bucket of a copy's object, if it is missing or cannot be seen; None too where storage has no buckets."""
    scheme, *rest = copy.relative_to(root()).parts
    bucket = root().joinpath(scheme, *rest[:1])
    return bucket if scheme in EXTRAS and not exists(bucket) else None


def version(facts: Facts) -> str:
    """What tells an object from what had its name before."""
    fact = next((fact for fact in FACTS if facts.get(fact)), "")
    value = facts.get(fact, "")  # a time is a number in some listings and not in others
    return f"{facts['size']} {fact} {value.timestamp() if isinstance(value, datetime) else value}"


def record_of(copy: Path) -> Path:
    """Where the version of a copy is kept."""
    return root() / VERSIONS / copy.relative_to(root())


def read_record(copy: Path) -> str | None:
    """The version of the object that a copy is, after `UNSENT` if it was changed here; None: it is of no object."""
    try:
        return record_of(copy).read_text(encoding="utf-8")
    except OSError:
        return None


def write_record(copy: Path, content: str) -> None:
    """Keep the version of a copy."""
    record = record_of(copy)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(content, encoding="utf-8")


def records(path: Path) -> Iterator[Path]:
    """The copies at a path and below it that have a record."""
    top = record_of(path)
    for record in [top] if top.is_file() else top.rglob("*"):
        if not record.name.startswith(".") and record.is_file():
            yield path / record.relative_to(top) if record != top else path


def unsent(path: Path) -> list[Path]:
    """The copies at a path and below it that were changed here and not sent."""
    return [copy for copy in records(path) if (read_record(copy) or "").startswith(UNSENT)]


def exists(path: Path) -> bool:
    """Whether a file or folder is there; of a copy, whether storage has it, or will have what is written here."""
    if not is_copy(path):
        return path.exists()
    with storage_errors(path):
        system, remote = system_of(path)
        system.invalidate_cache()
        return any(map(Path.is_file, unsent(path))) or bool(system.exists(remote))


def names(folder: Path) -> list[str]:
    """The names of the files and folders in a folder, sorted, without hidden ones; none if there is no such folder.

    >>> names(Path("data/emoji"))[:2]
    ['bitext', 'captions.arrow']
    """
    found: set[str] = set()
    if is_copy(folder):
        with storage_errors(folder):
            system, remote = system_of(folder)
            system.invalidate_cache()
            with suppress(FileNotFoundError, NotADirectoryError):
                found = {name.rstrip("/").rpartition("/")[2] for name in system.ls(remote, detail=False)}
            found |= {copy.relative_to(folder).parts[0] for copy in unsent(folder) if copy != folder and copy.is_file()}
    elif folder.is_dir():
        found = {path.name for path in folder.iterdir()}
    return sorted(name for name in found if name and not name.startswith("."))


def listing(folder: Path) -> dict[str, int]:
    """Path of each object below a copy's folder, relative to it and with `/` -> its bytes."""
    with storage_errors(folder):
        found = objects(folder)
    return {copy.relative_to(folder).as_posix(): int(facts["size"]) for copy, facts in found.items()}


def wildcards(pattern: Path) -> list[Path]:
    """The copies whose paths match a pattern with * ? [] and **, sorted."""
    with storage_errors(pattern):
        system, remote = system_of(pattern)
        system.invalidate_cache()
        top = root() / pattern.relative_to(root()).parts[0]
        return sorted(filter(is_copy, (top / name.strip("/") for name in system.glob(remote))))


def stamps(copies: Iterable[Path]) -> list[str | None]:
    """The version of each object; None if there is none."""

    def one(copy: Path) -> str | None:
        with storage_errors(copy):
            system, remote = system_of(copy)
            with suppress(FileNotFoundError):
                return version(system.info(remote))
        return None

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, copies))


@contextmanager
def storage_errors(path: Path, what: str = "read") -> Iterator[None]:
    """What file systems raise in the block becomes a StorageError that names the URL."""
    try:
        yield
    except (MclipError, *FAULTS):
        raise
    except ImportError as error:
        extra = EXTRAS.get(path.relative_to(root()).parts[0])
        advice = f"run, in mclip-kit's checkout, python -m pip install -e '.[{extra}]'" if extra else first_line(error)
        raise StorageError(f"{named(path)}: needs a package that is not installed: {advice}") from None
    except Exception as error:  # every file system has classes of its own: botocore's, google's, aiohttp's
        if isinstance(error, OSError) and (error.errno in OF_DISK or str(error.filename).startswith(str(root()))):
            raise
        raise StorageError(f"{named(path)}: cannot be {what} ({_why(error)}); {CHECK}") from None


def _why(error: Exception) -> str:
    """The reason in a file system's words."""
    reason = QUERY.sub("", str(getattr(error, "strerror", None) or first_line(error)))
    return f"access denied: {reason}" if isinstance(error, PermissionError) else str(reason)
