"""Whether the files of a prepared folder are those that were written, by the hashes in its manifest."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mclip_kit.errors import DataError, first_line
from mclip_kit.files import hash_files
from mclip_kit.layout import BITEXT, MANIFEST


def identity(folder: Path) -> str:
    """A hash of everything in a prepared folder that training reads, and a check that it is as it was written.

    Of a folder that fairseq wrote, which has no manifest: of its dictionaries, indices and sizes.

    >>> from pathlib import Path
    >>> from mclip_kit.data.intact import identity
    >>> len(identity(Path("data/emoji")))
    64

    Args:
        folder: the folder with the captions, or with the parallel sentences.
    Raises:
        DataError: a file is missing or is not what was written.
    """
    for base in (folder, folder.parent):
        if (base / MANIFEST).is_file():
            listed = {name: value for name, value in _listed(base).items() if _belongs(base / name, folder, base)}
            if base == folder or listed:
                check_intact(base, listed)
                return _digest(sorted(listed.items()))
    return _digest(_facts(folder))


def check_intact(folder: Path, listed: dict[str, str]) -> None:
    """DataError if a file of a folder is not what its SHA-256 says.

    Args:
        listed: name -> hexadecimal SHA-256.
    """
    missing = [name for name in listed if not (folder / name).is_file()]
    there = [name for name in listed if name not in missing]
    found = dict(zip(there, hash_files([folder / name for name in there]), strict=True))
    for name, value in listed.items():
        if found.get(name) != value:
            what = "missing" if name in missing else "is not what mclip-kit prepare wrote"
            raise DataError(
                f"{folder / name}: {what}; prepare the corpus again, or remove its line from {folder / MANIFEST} "
                "if you have changed it on purpose"
            )


def _listed(folder: Path) -> dict[str, str]:
    """The hashes in a manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("files", {})
        return {str(name): value + "" for name, value in files.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / MANIFEST}: damaged ({first_line(error)}); prepare the corpus again") from None


def _belongs(file: Path, folder: Path, base: Path) -> bool:
    """Whether a file of a prepared folder is read with its captions, or with the parallel sentences in `folder`."""
    return (file.parent.name != BITEXT) if folder == base else file.is_relative_to(folder)


def _facts(folder: Path) -> Iterator[tuple[str, Any]]:
    for file in sorted(folder.glob("*")):
        if file.suffix == ".idx" or file.name.startswith(("dict.", "sentencepiece")):
            yield file.name, hash_files([file])
        elif file.suffix == ".bin":
            yield file.name, file.stat().st_size


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(list(facts)).encode()).hexdigest()
