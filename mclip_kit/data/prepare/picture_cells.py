"""Where the pictures of a prepared folder are: the column `file` of images.tsv, and pictures copied out of tables."""

import difflib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path

from mclip_kit.data import images
from mclip_kit.data.corpora.matches import Matches
from mclip_kit.data.corpora.path_ends import split_path
from mclip_kit.data.corpora.picture_files import Folders, PictureFiles, Shared
from mclip_kit.engine.base import Engine
from mclip_kit.errors import DataError
from mclip_kit.files import write_whole
from mclip_kit.layout import IMAGES_TABLE, PICTURES_TAR
from mclip_kit.urls import named

UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # not \u202f: macOS puts it in names of screenshots

PART = 2**17  # bytes of the table whose names a process looks for at once, at least
Part = tuple[int, int]
"""Where whole lines of a file begin and end, in bytes."""
LARGE = 2**14  # from this many pictures on, processes are faster
MANY = 200_000  # files above which one process finds them


class PictureTar:
    """Copies pictures that are inside tables into one tar in the prepared folder, from which they are read in place."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PICTURES_TAR
        self._tar: tarfile.TarFile | None = None

    def add(self, content: bytes) -> str:
        """Append a picture's file; returns its name as `data.images` reads it, relative to the prepared folder."""
        self._tar = self._tar or tarfile.open(self._path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        info = tarfile.TarInfo(f"{self._tar.offset:015}")  # unique, and shorter than a header's 100 bytes
        info.size = len(content)
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]  # it would hold a header for each picture
        return images.tar_member(Path(PICTURES_TAR), start, len(content))

    def close(self) -> None:
        """Write the end of the tar, if anything is in it."""
        if self._tar:
            self._tar.close()


def fill_in_files(folder: Path, finder: PictureFiles, count: int, engine: Engine) -> Matches:
    """Find the files of the pictures that have none in images.tsv yet, and write them there.

    Args:
        folder: it has images.tsv.
        finder: looks for them.
        count: number of pictures, to choose whether processes look for them.
        engine: runs them.
    Raises:
        DataError: a path cannot be written into a table, or a worker process was killed.
    """
    table = folder / IMAGES_TABLE
    part_finder, many = PartFinder(finder, table), count >= LARGE and not engine.alone
    first = chain.from_iterable(map(part_finder.names, islice(_parts(table), 1)))
    if many and not all(map(finder.direct, first)):
        many = len(finder.files) < MANY  # each process makes its own index of files
    with engine.map(PartFinder, finder, table) if many else nullcontext(partial(map, part_finder)) as find:
        matches = finder.match_parts(lambda shared: find((part, shared) for part in _parts(table)))
    if matches.found:
        with write_whole(table) as temporary:
            _copy_with_files(table, temporary, matches.found)
    return matches


class PartFinder:
    """What a worker process does with a part of a table: it reads the names without a file, and looks for these files.

    Args:
        finder: looks for them.
        table: images.tsv.
    """

    def __init__(self, finder: PictureFiles, table: Path) -> None:
        self._finder, self._table = finder, table

    def __call__(self, item: tuple[Part, Shared | None]) -> Folders | Matches:
        """What `PictureFiles.look` finds in a part, given what all names share."""
        part, shared = item
        return self._finder.look(self.names(part), shared)

    def names(self, part: Part) -> list[str]:
        """The names without a file in a part of the table."""
        start, stop = part
        with open(self._table, "rb") as handle:
            handle.seek(start)
            lines = handle.read(stop - start).decode().split("\n")
        return [line.partition("\t")[0] for line in lines if line.endswith("\t")]


def _parts(table: Path) -> Iterator[Part]:
    """Where the rows of a table are, some at a time."""
    with open(table, "rb") as handle:
        handle.readline()
        start, size = handle.tell(), os.fstat(handle.fileno()).st_size
        while start < size:
            handle.seek(start + PART)
            handle.readline()
            stop = min(handle.tell(), size)
            yield start, stop
            start = stop


def near_file(name: str, files: Iterable[str]) -> str:
    """The file whose own name is nearly that of a picture; of several, the one whose folders are nearest.

    >>> near_file("photos/fox-1.jpg", ["photo/cat.jpg", "pets/fox_1.jpg", "photo/fox_1.jpg"])
    'photo/fox_1.jpg'

    Args:
        files: those that no other picture has, so that the last of many numbered pictures is not the one before.
    Returns:
        The file; empty if there is none.
    """
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(file.rpartition("/")[2], []).append(file)
    parts = split_path(name) or [""]
    if parts[-1] in by_name:
        return ""  # in another folder: another picture
    near = difflib.get_close_matches(parts[-1], by_name, n=1, cutoff=0.8)
    whole = [file for last in near for file in by_name[last]]
    return next(iter(difflib.get_close_matches("/".join(parts), whole, n=1, cutoff=0.0)), "")


def _copy_with_files(table: Path, to: Path, files: dict[str, str]) -> None:
    with open(table, encoding="utf-8", newline="\n") as old, open(to, "w", encoding="utf-8", newline="\n") as new:
        new.write(next(old))
        for line in old:
            file = files.get(line.partition("\t")[0]) if line.endswith("\t\n") else None
            new.write(f"{line[:-1]}{fit_path(file)}\n" if file else line)


def fit_path(path: str) -> str:
    """A path as a cell; that of a copy as its URL.

    Raises:
        DataError: it has a character that a table cannot hold.
    """
    if UNFIT.search(path):
        raise DataError(f"{path!r}: a path with a character that a table cannot hold; rename the file or folder")
    return named(path)
