"""Finds the files of a corpus: in a folder or in zips, compressed or not."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import zipfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.picture_files import PictureFiles
from mclip_kit.errors import DataError, first_line
from mclip_kit.storage import exists, fetch, listing, place
from mclip_kit.urls import is_copy

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
MOST = 1 << 28
TOO_LARGE = f"more than {MOST:,} bytes without an end, once unpacked; unpack it first, if you trust it"
BLOCK = 1 << 20  # bytes that are decoded at once
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class File:
    """A file, or a member of a zip; a compressed one is decompressed while it is read."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Its name, without .gz, .xz or .bz2."""
        return strip_compression(Path(self.member or self.path).name)

    @property
    def _suffix(self) -> str:
        return Path(self.member or self.path).suffix

    @property
    def uncompressed(self) -> bool:
        """Whether its bytes are those on disk."""
        return not self.member and self._suffix not in OPENERS

    @property
    def _most(self) -> int:
        """Bytes of a line, or of a JSON, that are read of it; -1: any number, as its disk has them."""
        return -1 if self.uncompressed else MOST

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its uncompressed bytes.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            with ExitStack() as stack:
                raw: IO[bytes] = stack.enter_context(open(fetch(self.path), "rb"))
                if self.member is not None:
                    raw = stack.enter_context(stack.enter_context(zipfile.ZipFile(raw)).open(self.member))
                opener = OPENERS.get(self._suffix)
                yield stack.enter_context(opener(raw, "rb")) if opener else raw
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise DataError(f"{self}: cannot be read ({error.strerror}); check its path and its permissions") from None
        except BROKEN as error:
            raise DataError(f"{self}: cannot be read ({first_line(error)}); fetch it again") from None

    def lines(self, encoding: str | None = None) -> Iterator[str]:
        """Its lines, without line ends and without a byte-order mark.

        Args:
            encoding: None: UTF-8, or UTF-16 if it begins with the mark of UTF-16.
        Raises:
            DataError: it is damaged, or a line is not in this encoding; the message names file and line.
        """
        whole = 0
        try:
            with self.open() as handle:
                for line in _decoded(handle, encoding, self._most):
                    yield line.rstrip("\r\n")
                    whole += 1
        except UnicodeError as error:
            raise DataError(f"{self} line {whole + 1}: {wrong_encoding(error, encoding)}") from None
        except OverflowError as error:
            raise DataError(f"{self} line {whole + 1}: {error}") from None
        except DataError as error:
            raise DataError(f"{error}{after(whole)}") from None

    def json(self) -> Any:
        """Its content as JSON."""
        with self.open() as handle:
            content = handle.read(self._most)
            if self._most > 0 and handle.read(1):
                raise DataError(f"{self}: {TOO_LARGE}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self}: not JSON ({first_line(error)}); correct it, or fetch it again") from None

    def sha256(self) -> str:
        """The hash of its uncompressed content."""
        with self.open() as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def _decoded(handle: IO[bytes], encoding: str | None, most: int) -> Iterator[str]:
    """The lines of a file as text; only line feeds end them. OverflowError if one has more than so many bytes."""
    first = _line(handle, most)
    if encoding is None and not first.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        if first:
            yield decoded(first.removeprefix(BOM_UTF8))
        if most < 0:
            yield from map(decoded, handle)
        while most > 0 and (line := _line(handle, most)):
            yield decoded(line)
        return
    decoder = getincrementaldecoder(encoding or "utf-16")()
    rest, text = first, ""
    while rest:
        text += decoder.decode(rest)
        *whole, text = text.split("\n")
        if 0 < most < len(text):
            raise OverflowError(TOO_LARGE)
        yield from (line + "\n" for line in whole)
        rest = handle.read(BLOCK)
    text += decoder.decode(b"", final=True)
    if text:
        yield text


def _line(handle: IO[bytes], most: int) -> bytes:
    line = handle.readline(most)
    if len(line) == most:
        raise OverflowError(TOO_LARGE)
    return line


def decoded(content: bytes) -> str:
    """UTF-8 as text. UnicodeDecodeError if it is not, or has a NUL, as UTF-16 has."""
    text = content.decode()
    if b"\0" in content:
        raise UnicodeDecodeError("utf-8", content, content.index(b"\0"), len(content), "NUL")
    return text


def after(lines: int) -> str:
    """How far a file was read, as the end of a message."""
    return f"; {lines:,} lines were whole" if lines else ""


def wrong_encoding(error: UnicodeError, encoding: str | None) -> str:
    """What is wrong, and how to go on."""
    if encoding:
        return f"not {encoding} ({first_line(error)}); correct its `encoding`, or convert the file to UTF-8"
    if isinstance(error, UnicodeDecodeError) and b"\0" in error.object:
        what = "has NUL bytes: not a text file, or UTF-16 without a mark"
        return f"{what}; convert that: iconv -f utf-16le -t utf-8 OLD > NEW"
    byte = f" (byte {error.object[error.start]:#04x})" if isinstance(error, UnicodeDecodeError) else ""
    return (
        f"not UTF-8{byte}; convert the file to UTF-8: in Excel, save it as CSV UTF-8; elsewhere, "
        "iconv -f cp1252 -t utf-8 OLD > NEW; or name the encoding of a table: --set options.tables.0.encoding=cp1252"
    )


def strip_compression(name: str) -> str:
    """A name without .gz, .xz or .bz2."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix in OPENERS else name


class Source:
    """The folder or zip with a corpus, and maybe a folder with its pictures, as the user gave them.

    A file is found by the end of its path, compressed or not, in the folder or in a zip at its top level. So the user
    may give a parent folder as well.

    Attributes:
        used: the files that were found, so that later changes can be detected.
        account: what becomes of the rows; a reader counts here what it does not take.

    Args:
        root: a folder or a zip; None for corpora that need no files.
        images: a folder of pictures, at any depth; None: they are looked for in `root`.
        obtain: how to get the corpus, for the messages about missing files.
    Raises:
        DataError: `root` or `images` does not exist.
    """

    def __init__(self, root: Path | None, images: Path | None = None, obtain: str = "") -> None:
        self.root, self.images, self._obtain = root, images, obtain
        self.used: set[Path] = set()
        self.account = Account()
        for given in (root, images):
            if given is not None and not exists(given):
                raise DataError(f"{given}: no such folder or file; {obtain}")

    @cached_property
    def _listing(self) -> dict[str, File]:
        """Path relative to the root, without .gz, .xz or .bz2 -> file."""
        if self.root is None:
            raise DataError(f"--source DIR is missing; it is the folder with the corpus's files; {self._obtain}")
        found: dict[str, File] = {}
        if is_copy(self.root):
            there = sorted(listing(self.root))
            found |= {strip_compression(name): File(self.root / name) for name in reversed(there) if name != "."}
            zips = [fetch(self.root / name) for name in there if "/" not in name and name.endswith((".", ".zip"))]
        elif self.root.is_file():
            zips = [self.root]
        else:
            paths = [Path(folder, name) for folder, _, names in os.walk(self.root) for name in names]
            for path in sorted(paths):  # a plain file before the same one compressed
                found.setdefault(strip_compression(path.relative_to(self.root).as_posix()), File(path))
            zips = sorted(self.root.glob("*.zip"))
        for path in zips:
            try:
                with zipfile.ZipFile(path) as archive:
                    members = [entry.filename for entry in archive.infolist() if entry.filename and not entry.is_dir()]
            except BROKEN as error:
                raise DataError(f"{path}: not a readable zip ({first_line(error)}); fetch it again") from None
            for member in members:
                found.setdefault(strip_compression(member), File(path, member))
        return found

    def files(self, pattern: str) -> list[File]:
        """Every file with a path that ends in a pattern (`*` and `?` as in a shell), sorted by name."""
        path = place(pattern)
        if path.is_absolute():
            found = [File(path)] if (exists(path) if is_copy(path) else path.is_file()) else []
        elif pattern in self._listing:
            found = [self._listing[pattern]]
        else:
            found = [file for name, file in self._listing.items() if fnmatchcase("/" + name, "*/" + pattern)]
        self.used |= {file.path for file in found}
        return found

    def file(self, *patterns: str) -> File | None:
        """The file that matches the first pattern with a match; None if no pattern has one.

        Raises:
            DataError: several files match the same pattern.
        """
        for pattern in patterns:
            found = self.files(pattern)
            if len(found) > 1:
                both = f"{found[0]} and {found[1]} both match {pattern}"
                raise DataError(f"{self.root}: {both}; give a --source that has only one of them")
            if found:
                return found[0]
        return None

    def require(self, *patterns: str) -> File:
        """As `file`, but a missing file is a DataError."""
        found = self.file(*patterns)
        if found is None:
            raise DataError(f"{self.root}: {patterns[0]} is missing, plain or compressed; {self._obtain}")
        return found

    def pictures(self, unique: bool) -> PictureFiles:
        """Finds the corpus's picture files: in `images`, or in the root.

        Args:
            unique: names of pictures are unique without their folders (`Corpus.pictures`).
        """
        return PictureFiles(self.images or self.root, self.root, unique)

    def check_hashes(self, checksums: dict[str, str]) -> None:
        """Compare files with their published SHA-256; the reader reports missing files.

        Raises:
            DataError: a file differs.
        """
        for name, expected in checksums.items():
            file = self.file(name)
            if file and file.sha256() != expected:
                raise DataError(
                    f"{file}: differs from the published file (SHA-256); fetch it again, or accept it with "
                    "--set checksums={}"
                )
