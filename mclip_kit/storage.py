"""Places in object storage, by their copies on this machine.

`place("s3://bucket/data")` is the path of a copy, `named` its inverse, and the rest of the program takes paths:
`fetch` brings what is about to be read, `send` writes back what `files` has written whole. A path that is no copy
passes through all of them as it is. fsspec reads and writes: s3:// needs the package s3fs, gs:// gcsfs; hf:// none.

ROOT/SCHEME/BUCKET/...            copies; ROOT is MCLIP_KIT_STORAGE, by default ~/.cache/mclip_kit/storage
ROOT/.versions/SCHEME/BUCKET/...  of each copy: which version of the object it is
"""

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mclip_kit.disk import disk_errors
from mclip_kit.errors import MALFORMED, DataError, DiskError, first_line
from mclip_kit.locks import locked, temporary_name
from mclip_kit.progress import tqdm

URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.+)", re.DOTALL)
ROOT, SIZE = "MCLIP_KIT_STORAGE", "MCLIP_KIT_STORAGE_SIZE"
"""Variables: the folder of the copies, and how many GB they may take."""
GB = 50.0
VERSIONS = ".versions"
FACTS = ("ETag", "etag", "md5Hash", "crc32c", "blob_id", "LastModified", "mtime", "updated", "created", "last_commit")
"""What file systems say of an object that changes with its content; the first that is there counts."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> the extra of this package that has its file system."""
LARGE = 1 << 26  # bytes from which a download shows a bar

_seen: set[Path] = set()
"""Copies that this process has compared with their objects: it works with one version."""


def root() -> Path:
    """The folder of the copies."""
    given = os.environ.get(ROOT)
    return Path(os.path.abspath(given)) if given else Path.home() / ".cache" / "mclip_kit" / "storage"


def place(name: str | Path) -> Path:
    """The path of a place that a user names: of the copy, if it is a URL.

    >>> place("data/coco")
    PosixPath('data/coco')
    >>> place("s3://bucket/coco").relative_to(root())
    PosixPath('s3/bucket/coco')

    Raises:
        DataError: the URL leads out of its bucket.
    """
    found = URL.fullmatch(str(name))
    if not found:
        return Path(name)
    scheme, rest = found.groups()
    if scheme == "file":
        return Path(rest)
    if ".." in rest.split("/") or not rest.strip("/"):
        raise DataError(f"{name}: not a place in object storage; write it as in s3://BUCKET/FOLDER")
    return root() / scheme / rest.strip("/")


def is_copy(path: Path) -> bool:
    """Whether a path is that of a copy."""
    return path.is_absolute() and path.is_relative_to(root())


def named(path: str | Path) -> str:
    """A path as users name it: a copy by its URL.

    >>> named(place("s3://bucket/coco")), named("data/coco")
    ('s3://bucket/coco', 'data/coco')
    """
    if not is_copy(Path(path)):
        return str(path)
    scheme, *rest = Path(path).relative_to(root()).parts
    return f"{scheme}://{'/'.join(rest)}"


def with_urls(text: str) -> str:
    """A message with URLs in place of the paths of copies."""
    return re.sub(re.escape(str(root())) + r"/([a-z][a-z0-9+.-]+)/", r"\1://", text)


def fetch(path: Path, but: Collection[str] = (), missing_ok: bool = False, again: bool = False) -> Path:
    """Bring the copy of a file, or of a folder with all that is in it, up to date; returns its path.

    Copies that were used longest ago are removed where they would take more than MCLIP_KIT_STORAGE_SIZE. A process
    compares a copy with its object once, so what it reads stays one version.

    Args:
        path: what is about to be read; nothing happens unless it is a copy.
        but: names of files in the folder that are not brought; `fetch` brings them by their own paths.
        missing_ok: whether there may be nothing.
        again: compare also what this process has compared before; for folders that grow.
    Raises:
        DataError: there is nothing, it cannot be read, a package is missing, or it is larger than all copies may be.
    """
    if not is_copy(path) or (path in _seen and path.exists() and not again):
        return path
    with storage_errors(path), locked(_record(path).with_name(f"{path.name}.fetch"), wait=True):
        system, remote = _system(path)
        system.invalidate_cache()
        found = system.find(remote, detail=True)
        if not found and not missing_ok:
            raise DataError(f"{named(path)}: there is nothing at this place; check the name, and your access to it")
        objects = {_copy(path, remote, name): facts for name, facts in found.items()}
        objects = {copy: facts for copy, facts in objects.items() if copy.name not in but}
        _remove_gone(path, {*objects}, but)
        _download(system, {copy: facts for copy, facts in objects.items() if not _is_current(copy, facts)}, {*objects})
    now = time.time()
    for copy in objects:
        with suppress(OSError):
            os.utime(copy, (now, copy.stat().st_mtime))
    _seen.update(objects, [path])
    return path


def send(path: Path) -> None:
    """Write a file, or a folder, to where its copy belongs; nothing happens unless it is a copy.

    Files go in the order in which they were written, so that what makes a folder whole comes last; what is there and
    not in the folder any more is removed. Hidden files stay here.

    Raises:
        DataError: it cannot be written there.
    """
    if not is_copy(path) or any(part.startswith(".") for part in path.relative_to(root()).parts):
        return
    with storage_errors(path, "written"):
        system, remote = _system(path)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        files.sort(key=lambda file: (file.stat().st_mtime_ns, str(file)))
        if path.is_dir():
            system.invalidate_cache()
            _replace(system, path, remote, files)
        for file in files:
            _upload(system, file)
    _seen.update(files, [path])


def forget(path: Path) -> None:
    """Remove what a copy is of, after the copy itself was removed; nothing happens unless it is one."""
    if is_copy(path) and not path.exists():
        with storage_errors(path, "removed"):
            system, remote = _system(path)
            with suppress(FileNotFoundError):
                system.rm(remote, recursive=True)
            record = _record(path)
            shutil.rmtree(record) if record.is_dir() else record.unlink(missing_ok=True)
        _seen.difference_update([copy for copy in _seen if path in (copy, *copy.parents)])


@contextmanager
def storage_errors(path: Path, what: str = "read") -> Iterator[None]:
    """What file systems raise in the block becomes a DataError that names the URL."""
    try:
        yield
    except (DataError, DiskError):
        raise
    except ImportError as error:
        extra = EXTRAS.get(path.relative_to(root()).parts[0])
        advice = f"pip install 'mclip-kit[{extra}]'" if extra else first_line(error)
        raise DataError(f"{named(path)}: needs a package that is not installed: {advice}") from None
    except Exception as error:  # every file system has classes of its own: botocore's, google's, aiohttp's
        if isinstance(error, MALFORMED) and "Protocol not known" not in str(error):
            raise
        raise DataError(
            f"{named(path)}: cannot be {what} ({first_line(error)}); check its name and your access to it"
        ) from None


@cache
def _filesystem(scheme: str) -> Any:
    import fsspec  # type: ignore[import-untyped]  # here: the command line starts faster

    return fsspec.filesystem(scheme)


def _system(path: Path) -> tuple[Any, str]:
    """The file system of a copy's object, and the object's name in it."""
    scheme, *rest = path.relative_to(root()).parts
    system = _filesystem(scheme)
    return system, system._strip_protocol(f"{scheme}://{'/'.join(rest)}")


def _copy(path: Path, remote: str, name: str) -> Path:
    """The copy of an object below a place."""
    inside = name.removeprefix(remote).strip("/")
    return path / inside if inside else path


def _record(copy: Path) -> Path:
    return root() / VERSIONS / copy.relative_to(root())


def _version(facts: Mapping[str, Any]) -> str:
    found = next((f"{fact} {facts[fact]}" for fact in FACTS if facts.get(fact)), "")
    return f"{facts['size']} {found}"


def _is_current(copy: Path, facts: Mapping[str, Any]) -> bool:
    try:
        return copy.stat().st_size == facts["size"] and _record(copy).read_text(encoding="utf-8") == _version(facts)
    except OSError:
        return False


def _note(copy: Path, facts: Mapping[str, Any]) -> None:
    record = _record(copy)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(_version(facts), encoding="utf-8")


def _remove_gone(path: Path, there: Collection[Path], but: Collection[str]) -> None:
    """Remove copies in a folder whose objects are gone; files that are no copies of an object stay."""
    records = _record(path)
    for record in records.rglob("*") if records.is_dir() else ():
        copy = path / record.relative_to(records)
        if record.is_file() and copy not in there and copy.name not in but and not record.name.startswith("."):
            copy.unlink(missing_ok=True)
            record.unlink(missing_ok=True)


def _download(system: Any, objects: Mapping[Path, Mapping[str, Any]], wanted: Collection[Path]) -> None:
    size = sum(facts["size"] for facts in objects.values())
    if objects:
        _make_room(size, wanted)
    with tqdm(total=size, desc="fetch", unit="B", unit_scale=True, leave=False, disable=size < LARGE) as bar:
        for copy, facts in objects.items():
            with disk_errors(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                temporary = temporary_name(copy)
                try:
                    system.get_file(facts["name"], str(temporary))
                    if temporary.stat().st_size != facts["size"]:
                        raise DataError(f"{named(copy)}: changed while it was read; run again")
                    _record(copy).unlink(missing_ok=True)
                    os.replace(temporary, copy)
                finally:
                    temporary.unlink(missing_ok=True)
                _note(copy, facts)
            bar.update(facts["size"])


def _make_room(size: int, wanted: Collection[Path]) -> None:
    """Remove the copies that were used longest ago, until so many more bytes fit."""
    try:
        most = float(os.environ.get(SIZE, GB)) * 1e9
    except ValueError:
        raise DataError(f"{SIZE}={os.environ[SIZE]}: not a number of GB; write it as in {SIZE}=100") from None
    copies = []
    for folder, _, names in os.walk(root()):
        if VERSIONS not in Path(folder).relative_to(root()).parts:
            for name in names:
                with suppress(OSError):
                    copies.append((Path(folder, name), os.stat(Path(folder, name))))
    taken = sum(facts.st_size for _, facts in copies)
    for copy, facts in sorted(copies, key=lambda item: item[1].st_atime_ns):
        if taken + size <= most:
            return
        if copy not in wanted and _record(copy).is_file():
            copy.unlink(missing_ok=True)
            _record(copy).unlink(missing_ok=True)
            taken -= facts.st_size
    if taken + size > most:
        raise DataError(
            f"{root()}: {size / 1e9:.2f} GB more do not fit into the {most / 1e9:g} GB that copies of objects may "
            f"take; set {SIZE} to more GB"
        )


def _replace(system: Any, path: Path, remote: str, files: list[Path]) -> None:
    """Before a folder is sent: remove what is there and is not in it, first what makes the old one whole."""
    there = {_copy(path, remote, name): name for name in system.find(remote)}
    last = files[-1:] if files and files[-1] in there else []
    for copy in [*last, *sorted(there.keys() - {*files})]:
        system.rm(there[copy])
        _record(copy).unlink(missing_ok=True)


def _upload(system: Any, file: Path) -> None:
    remote = _system(file)[1]
    system.put_file(str(file), remote)
    system.invalidate_cache()
    _note(file, next(iter(system.find(remote, detail=True).values())))
