"""Names and bytes of picture files; `pictures` makes them RGB, `transforms` makes tensors of them.

A picture is a file, or a member of an uncompressed tar that is read in place. A tar member is named
`shard.tar@OFFSET+SIZE`, both in bytes. A row of an array of pictures is named `images.npy@ROW`.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from mclip_kit.data.arrays import open_array
from mclip_kit.progress import tqdm
from mclip_kit.storage import fetch, listing
from mclip_kit.urls import is_copy

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
TAR_MEMBER = re.compile(r"(.+\.tar)@(\d+)\+(\d+)", re.DOTALL)
PROGRAMS = ("EPS", "WMF")  # formats that PIL gives to Ghostscript, and to Windows
CAPTION_NUMBER = re.compile(r"(#\w+)?#\d+$")
ARRAY_ROW = re.compile(r"(.+\.npy)@(\d+)", re.DOTALL)
TRIES = 5  # to read a copy of an object
COCO = re.compile(r"coco_[a-z]+20\d\d_0*(\d+)")


def tar_member(tar: Path, offset: int, size: int) -> str:
    """The name of a picture inside a tar.

    Args:
        tar: the tar's path.
        offset: where the picture's content starts, in bytes from the tar's start.
        size: length of the content, in bytes.
    """
    return f"{tar}@{offset}+{size}"


def array_row(array: Path, row: int) -> str:
    """The name of a picture in an array of pictures, uint8 (N, S, S, 3)."""
    return f"{array}@{row}"


def container(path: Path) -> Path:
    """The file on disk that holds a picture: its tar, its array, or the path itself."""
    match = TAR_MEMBER.fullmatch(str(path)) or ARRAY_ROW.fullmatch(str(path))
    return Path(match[1]) if match else path


def read_bytes(path: Path) -> bytes:
    """The content of a file, of a tar member, or, as a PNG, of a row of an array.

    Raises:
        OSError: it cannot be read, or the tar or the array is shorter than the name says.
    """
    row = ARRAY_ROW.fullmatch(str(path))
    if row and not path.exists():
        return _png(Path(row[1]), int(row[2]))
    match = TAR_MEMBER.fullmatch(str(path))
    if not match:
        with _open(path) as handle:
            return handle.read()
    with _open(Path(match[1])) as handle:
        handle.seek(int(match[2]))
        content = handle.read(int(match[3]))
    if len(content) < int(match[3]):
        raise OSError(f"{path}: the tar ends before")
    return content


def _open(path: Path) -> IO[bytes]:
    """A file, brought first if it is a copy; another process may remove it again to make room for others."""
    for _ in range(TRIES if is_copy(path) else 0):
        with suppress(FileNotFoundError):
            return open(fetch(path), "rb")
    return open(path, "rb")


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """A picture's file, tar member or row of an array, open for reading; errors as of `read_bytes`."""
    if container(path) == path or path.exists():
        with _open(path) as handle:
            yield handle
    else:
        yield io.BytesIO(read_bytes(path))


def _png(array: Path, row: int) -> bytes:
    try:
        pixels = open_array(fetch(array))[row]
    except (ValueError, IndexError) as error:
        raise OSError(f"{array}: row {row} cannot be read: {error}") from None
    held = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(held, "PNG")
    return held.getvalue()


def open_picture(source: Path | str | IO[bytes]) -> Image.Image:
    """A picture as PIL opens it, its pixels not decoded yet; never by a decoder that starts another program.

    Raises:
        UnidentifiedImageError: it is no picture.
        OSError, ValueError, ...: what PIL's decoders raise on damaged files.
    """
    Image.init()
    return Image.open(source, formats=[kind for kind in Image.OPEN if kind not in PROGRAMS])


def picture_id(name: str, source: str | None) -> str:
    """One spelling for a picture's name, so that corpora that share pictures can be compared and joined.

    - An address (`http://...`) is kept whole: only the whole of it is unique.
    - A COCO picture is known by its number, in whatever corpus it occurs.
    - Others are known by their name without folder, suffix and `#...`, in lower case, prefixed with their source.
    - Without a source, the name means something in its own corpus only: its folders, its suffix and its case are kept.

    Args:
        name: a file name, a number or an address.
        source: where the pictures are from (`Corpus.pictures`).
    """
    if "://" in name:
        return name.strip()
    stem = _stem(name)
    coco = COCO.fullmatch(stem.lower())
    if coco:
        return f"coco:{int(coco[1])}"
    if source is None:
        return without_number(name).replace("\\", "/").removeprefix("./")
    is_coco_number = source == "coco" and stem.isascii() and stem.isdigit()
    return f"{source}:{int(stem) if is_coco_number else stem.lower()}"


def is_local(name: str) -> bool:
    """Whether a name is neither an address nor a COCO picture's, so that it means nothing in other corpora.

    Quick: names for which it is False may be local, too; `picture_id` knows.
    """
    return ":" not in name and "coco_" not in name.lower()


def without_number(name: str) -> str:
    """The name without the number of a caption: `NAME#N` and `NAME#TAG#N`."""
    return CAPTION_NUMBER.sub("", name.strip())


def _stem(name: str) -> str:
    base = without_number(name).replace("\\", "/").rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(base)
    return stem if suffix.lower() in SUFFIXES else base


def walk_files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it; links to folders are followed, hidden files are not listed."""
    if is_copy(folder):
        yield from listing(folder)
        return
    seen: set[str] = set()
    bar = tqdm(os.walk(folder, followlinks=True), "looking for pictures", leave=False, unit="folder")
    for path, folders, names in bar:
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder that was met
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = os.path.relpath(path, folder).replace(os.sep, "/")
        for name in names:
            if not name.startswith("."):  # files that systems add, such as macOS's ._NAME.jpg
                yield name if base == "." else f"{base}/{name}"
