"""A corpus's files: in a folder, in zips, compressed or not."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import zipfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from mclip_kit.data.picture_ids import PICTURES, picture_id
from mclip_kit.errors import DataError, first_line

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class File:
    """A file, or a member of a zip; what is compressed is read uncompressed."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Its name, without the ending of its compression."""
        return plain(Path(self.member or self.path).name)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its uncompressed bytes; what is broken about it becomes a DataError."""
        try:
            with ExitStack() as stack:
                raw: IO[bytes] = stack.enter_context(open(self.path, "rb"))
                if self.member is not None:
                    raw = stack.enter_context(stack.enter_context(zipfile.ZipFile(raw)).open(self.member))
                opener = OPENERS.get(Path(self.member or self.path).suffix)
                yield stack.enter_context(opener(raw, "rb")) if opener else raw
        except BROKEN as error:
            raise DataError(f"{self}: cannot be read ({first_line(error)}); fetch it again") from None

    def lines(self) -> Iterator[str]:
        """Its lines, without their ends and without a byte-order mark.

        Raises:
            DataError: it breaks off, or a line is not UTF-8; file and line are named.
        """
        whole = 0
        try:
            with self.open() as handle:
                for line in handle:
                    yield (line if whole else line.removeprefix(BOM_UTF8)).rstrip(b"\r\n").decode()
                    whole += 1
        except UnicodeDecodeError as error:
            wrong = f"{error.object[error.start]:#04x}"
            raise DataError(f"{self} line {whole + 1}: not UTF-8 (byte {wrong}); convert the file to UTF-8") from None
        except DataError as error:
            raise DataError(f"{error}; {whole:,} lines were whole") from None

    def json(self) -> Any:
        """Its content as JSON."""
        with self.open() as handle:
            content = handle.read()
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self}: not JSON ({first_line(error)}); fetch it again") from None

    def sha256(self) -> str:
        """The hash of its uncompressed content."""
        with self.open() as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def plain(name: str) -> str:
    """A name without the ending of its compression."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix in OPENERS else name


class Source:
    """What a user gave: a folder or a zip with the corpus, and perhaps a folder with its pictures.

    Files are found by what their path ends in, compressed or not, in the folder or in a zip at its top, so that
    it does not matter from how far above the user points.

    Attributes:
        used: the files that were found, for whoever wants to know whether they changed since.

    Args:
        root: a folder or a zip; None for corpora that need none.
        images: a folder of pictures, at any depth; None looks for them in `root`.
        obtain: what to say when something is missing.
    """

    def __init__(self, root: Path | None, images: Path | None = None, obtain: str = "") -> None:
        self.root, self.images, self._obtain = root, images, obtain
        self.used: set[Path] = set()
        for given in (root, images):
            if given is not None and not given.exists():
                raise DataError(f"{given}: there is no such folder; {obtain}")

    @cached_property
    def _listing(self) -> dict[str, File]:
        """Path below the root, uncompressed -> file."""
        if self.root is None:
            raise DataError(f"--source DIR is missing: where the corpus's files are; {self._obtain}")
        found: dict[str, File] = {}
        if self.root.is_file():
            zips = [self.root]
        else:
            paths = [Path(folder, name) for folder, _, names in os.walk(self.root) for name in names]
            found = {}
            for path in sorted(paths):  # a plain file before the same one compressed
                found.setdefault(plain(path.relative_to(self.root).as_posix()), File(path))
            zips = sorted(self.root.glob("*.zip"))
        for path in zips:
            try:
                with zipfile.ZipFile(path) as archive:
                    members = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            except BROKEN as error:
                raise DataError(f"{path}: not a readable zip ({first_line(error)}); fetch it again") from None
            for member in members:
                found.setdefault(plain(member), File(path, member))
        return found

    def files(self, pattern: str) -> list[File]:
        """Every file whose path below the root ends in a pattern (`*` and `?` as in a shell), in order of names."""
        if Path(pattern).is_absolute():
            found = [File(Path(pattern))] if Path(pattern).is_file() else []
        elif pattern in self._listing:
            found = [self._listing[pattern]]
        else:
            found = [file for name, file in self._listing.items() if fnmatchcase("/" + name, "*/" + pattern)]
        self.used |= {file.path for file in found}
        return found

    def file(self, *patterns: str) -> File | None:
        """The one file that fits the first pattern that fits any; None if none does.

        Raises:
            DataError: several fit.
        """
        for pattern in patterns:
            found = self.files(pattern)
            if len(found) > 1:
                raise DataError(f"{self.root}: both {found[0]} and {found[1]} could be {pattern}; point at one of them")
            if found:
                return found[0]
        return None

    def need(self, *patterns: str) -> File:
        """As `file`, but it must be there."""
        found = self.file(*patterns)
        if found is None:
            raise DataError(f"{self.root}: {patterns[0]} is missing, plain or compressed; {self._obtain}")
        return found

    @cached_property
    def _pictures(self) -> dict[str, Path]:
        """Name, with and without its ending -> picture file."""
        folder = self.images or self.root
        found: dict[str, Path] = {}
        if folder is not None and folder.is_dir():
            for path, folders, names in tqdm(os.walk(folder), "looking for pictures", leave=False, unit="folder"):
                folders.sort()
                for name in sorted(names):
                    if os.path.splitext(name)[1].lower() in PICTURES:
                        found.setdefault(name, Path(path, name))
                        found.setdefault(os.path.splitext(name)[0], Path(path, name))
        return found

    def picture(self, name: str) -> Path | None:
        """A picture's file by its path or its mere name, with or without its ending; None if it is not here."""
        folder = self.images or self.root
        if "/" in name and folder is not None and (folder / name).is_file():
            return folder / name
        base = name.rsplit("/", 1)[-1]
        kind, _, number = picture_id(base, None).partition(":")
        newer = f"{int(number):012}" if kind == "coco" and number else base  # COCO 2017 has the bare numbers of 2014
        found = (self._pictures.get(key) for key in (base, os.path.splitext(base)[0], newer))
        return next(filter(None, found), None)

    def check(self, checksums: dict[str, str]) -> None:
        """Compare files with their known hashes; files that are absent are left to the reader.

        Raises:
            DataError: one differs.
        """
        for name, expected in checksums.items():
            file = self.file(name)
            if file and file.sha256() != expected:
                raise DataError(
                    f"{file}: differs from the published file (SHA-256); fetch it again, or accept it with "
                    "--set checksums={}"
                )
