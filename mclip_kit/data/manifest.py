"""The hashes that a folder keeps of its files: a file that is read must be the one that was written."""

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from mclip_kit.errors import MALFORMED, DataError, first_line
from mclip_kit.files import hash_files
from mclip_kit.layout import MANIFEST
from mclip_kit.storage import fetch, listing, names, place, stamps
from mclip_kit.urls import is_copy, named

_known: dict[Path, tuple[int, ...]] = {}  # files that were compared by this process -> their size and times


def check_files(
    folder: Path, wanted: Iterable[str], manifest: str = MANIFEST, again: str = "prepare it with --again"
) -> set[str]:
    """Compare files of a prepared folder with the hashes in its manifest.

    Files that the manifest does not have, and folders without a manifest (of fairseq-preprocess), are not compared.
    A process reads a file once for this, unless it changes.

    >>> check_files(Path("data/emoji"), ["captions.arrow"])

    Args:
        folder: the prepared folder.
        wanted: paths of the files in it.
        manifest: the JSON file that has the hashes under `files`.
        again: how the files are written again.
    Returns:
        The names of the files that are as they were prepared.
    Raises:
        DataError: the manifest is damaged, or a file is not as it was prepared.
    """
    path = folder / manifest
    if not path.is_file():
        return set()
    hashes = _hashes(path, again)
    files = {folder / name: hashes[name] for name in wanted if name in hashes and (folder / name).is_file()}
    left = [file for file in files if _known.get(file.absolute()) != _stamp(file)]
    for file, found in zip(left, hash_files(left), strict=True):
        if found != files[file]:
            raise DataError(
                f"{file}: damaged or edited, it is not what was written; {again}, or, if you edited "
                f'it, remove its line under "files" in {path}'
            )
        _known[file.absolute()] = _stamp(file)
    return {str(file.relative_to(folder)) for file in files}


def _hashes(path: Path, again: str = "prepare it with --again") -> dict[str, str]:
    """Name -> SHA-256 of each file that a manifest lists."""
    try:
        return {str(name): str(value) for name, value in dict(json.loads(path.read_bytes()).get("files") or {}).items()}
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}); {again}") from None


def identity(folder: Path) -> str:
    """A hash of what a folder of captions, or one of parallel sentences, has, as its manifest says.

    Of a folder that fairseq-preprocess wrote, which has none: of its dictionaries, its indices and its sizes.

    >>> len(identity(Path("data/emoji")))
    64

    Raises:
        DataError: the manifest is damaged.
    """
    facts: list[tuple[str, str]] = []
    folder = place(folder)
    for path, inside in ((folder / MANIFEST, ""), (folder.parent / MANIFEST, f"{folder.name}/")):
        if fetch(path).is_file() and not facts:
            facts = sorted((name, value) for name, value in _hashes(path).items() if name.startswith(inside))
    for file in sorted(fetch(folder).glob("*.*")) if not facts else ():
        if file.suffix == ".idx" or file.name.startswith("dict."):
            facts.append((file.name, hash_files([file])[0]))
        elif file.suffix == ".bin":
            facts.append((file.name, str(file.stat().st_size)))
    return sha256(json.dumps(facts).encode()).hexdigest()


def manifests_in(folder: Path) -> list[Path]:
    """The manifests of the prepared folders in a folder, sorted; those in object storage are brought.

    >>> [path.parent.name for path in manifests_in(Path("data"))]
    ['emoji']
    """
    if is_copy(folder):
        places = [folder / name / MANIFEST for name in names(folder)]
        return [fetch(path) for path, stamp in zip(places, stamps(places), strict=True) if stamp]
    return sorted(path for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def file_stamps(paths: Iterable[Path]) -> dict[str, list[int | str]]:
    """Path -> size in bytes and time of the last change in nanoseconds; URL -> version of the object.

    Raises:
        OSError: a file is missing.
    """
    given = list(paths)
    copies = [path for path in given if is_copy(path)]
    of_objects = {named(copy): stamp for copy, stamp in zip(copies, stamps(copies), strict=True)}
    stats = {str(path): path.stat() for path in given if not is_copy(path)}
    local: dict[str, list[int | str]] = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}
    return local | {url: [stamp or "missing"] for url, stamp in of_objects.items()}


def bitext_stamps(folders: Iterable[str]) -> list[dict[str, list[int | str]]]:
    """What `file_stamps` says of all files of some folders of parallel sentences."""
    return [file_stamps(_files(Path(folder).absolute())) for folder in folders]


def _files(folder: Path) -> list[Path]:
    """The files in a folder, of a copy also those that are not brought."""
    if is_copy(folder):
        return [folder / name for name in listing(folder) if "/" not in name]
    return [path for path in folder.iterdir() if path.is_file()]


def _stamp(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
