"""The hashes in a prepared folder's manifest: a file that is read must be the one that was prepared."""

import json
from collections.abc import Iterable
from pathlib import Path

from mclip_kit.errors import MALFORMED, DataError, first_line
from mclip_kit.files import hash_files
from mclip_kit.layout import MANIFEST

_known: dict[Path, tuple[int, ...]] = {}  # files that were compared by this process -> their size and times


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Compare files of a prepared folder with the hashes in its manifest.

    Files that the manifest does not have, and folders without a manifest (of fairseq-preprocess), are not compared.
    A process reads a file once for this, unless it changes.

    >>> check_files(Path("data/emoji"), ["captions.tsv"])

    Args:
        folder: the prepared folder.
        names: paths of the files in it.
    Raises:
        DataError: the manifest is damaged, or a file is not as it was prepared.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        hashes = dict(json.loads(path.read_text(encoding="utf-8")).get("files") or {})
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}); prepare the corpus again") from None
    files = {folder / name: hashes[name] for name in names if name in hashes and (folder / name).is_file()}
    left = [file for file in files if _known.get(file.absolute()) != _stamp(file)]
    for file, found in zip(left, hash_files(left), strict=True):
        if found != files[file]:
            raise DataError(
                f"{file}: damaged or edited, it is not what was prepared; prepare the corpus again, or, if you edited "
                f'it, remove its line under "files" in {path}'
            )
        _known[file.absolute()] = _stamp(file)


def _stamp(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
