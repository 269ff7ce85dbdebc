"""Hashes of a prepared folder's pictures and texts, for the leakage check; `data.leakage` compares them.

`hashes.py` says what is equal.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from mclip_kit.data.fairseq_io import side_file
from mclip_kit.data.hashes import hash_and_key, hash_pictures
from mclip_kit.data.images import read_bytes
from mclip_kit.data.leakage import fingerprint_file
from mclip_kit.data.prepare.caption_rows import CaptionRows
from mclip_kit.data.prepare.parallel_text import Pair, side_prefixes
from mclip_kit.data.prepare.picture_splits import PictureSplits
from mclip_kit.engine.base import Engine, map_ahead
from mclip_kit.engine.local import engine_of
from mclip_kit.layout import BITEXT, FINGERPRINTS, IMAGES_ARRAY, IMAGES_TABLE
from mclip_kit.progress import tqdm
from mclip_kit.storage import place

BLOCK = 4096  # table rows that are hashed at once
READERS = 8  # threads that read picture files, in one process
PICTURES = 512  # that are read and hashed at once
LARGE = 2**11  # from this many pictures on, worker processes are faster than threads

Hashed = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of N pictures: hashes of names, uint64 (N,); hashes of contents, uint64 (N,); keys of contents, uint64 (N, 2)."""


class FingerprintWriter:
    """Appends hashes to a folder's fingerprint files; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, IO[bytes]] = {}
        self._stack = ExitStack()

    def add(self, split: str, kind: str, hashes_N: np.ndarray) -> None:
        """Append hashes; `kind` is one of `leakage.KINDS`."""
        path = fingerprint_file(self._folder, split, kind)
        if path not in self._files:
            self._files[path] = self._open(path)
        self._files[path].write(hashes_N.astype("<u8").tobytes())

    def truncate(self, split: str, kind: str, count: int) -> None:
        """Keep the first `count` hashes; those after them are from an attempt that was interrupted."""
        path = fingerprint_file(self._folder, split, kind)
        if path.exists():
            os.truncate(path, 8 * count)

    def _open(self, path: Path) -> IO[bytes]:
        """Open for appending; half a hash that a killed process left at the end is cut off."""
        path.touch()
        os.truncate(path, path.stat().st_size // 8 * 8)
        return self._stack.enter_context(open(path, "ab"))

    def __enter__(self) -> "FingerprintWriter":
        (self._folder / FINGERPRINTS).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def fingerprint_tables(
    folder: Path, captions: CaptionRows, pictures: PictureSplits, hashed: Mapping[str, np.ndarray]
) -> None:
    """Write the hashes of the pictures, and those of the captions, of a folder's tables.

    Args:
        folder: the hashes go into its fingerprints/.
        captions: they are written.
        pictures: the splits that they are in.
        hashed: of the pictures; see `hash_picture_table`.
    """
    with FingerprintWriter(folder) as writer:
        for split in pictures.splits():
            inside_N = pictures.which(lambda own, split=split: split in own)  # type: ignore[misc]
            for kind, hashes_N in hashed.items():
                writer.add(split, kind, hashes_N[inside_N])
        for split, hashes_N in captions.split_hashes():
            writer.add(split, "texts", hashes_N)


def hash_picture_table(
    folder: Path, count: int, source: str | None, workers: int | Engine | None = 1, missing: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Hashes of all pictures of a folder, in the order of images.tsv: kind -> uint64 (N,); and keys, uint64 (N, 2).

    Args:
        folder: it has images.tsv, and images.npy if the pictures are not files.
        count: N, for the progress bar.
        source: where the pictures are from; None: their names are unique in this folder only.
        workers: as of `prepare`.
        missing: how many have no file; the others decide between threads and processes.
    Raises:
        DataError: a worker process was killed.
    """
    bar = tqdm(total=count, desc="pictures: hash", unit="picture", leave=False, disable=count < 1000)
    found: list[Hashed] = [(np.empty(0, "<u8"), np.empty(0, "<u8"), np.empty((0, 2), "<u8"))]
    with _hasher(folder, count - missing, source, engine_of(workers)) as hasher, bar:
        for hashed in hasher(_numbered_blocks(folder / IMAGES_TABLE)):
            found.append(hashed)
            bar.update(len(hashed[0]))
    names_N, contents_N, keys_N2 = (np.concatenate(blocks) for blocks in zip(*found, strict=True))
    return {"pictures": names_N, "contents": contents_N}, keys_N2


@contextmanager
def _hasher(
    folder: Path, count: int, source: str | None, engine: Engine
) -> Iterator[Callable[[Iterable[tuple[int, bytes]]], Iterator[Hashed]]]:
    """Hash blocks in threads, or for many pictures in processes; without files, here."""
    if not count:
        yield partial(map, PictureHasher(folder, source))
    elif count < LARGE or engine.alone:
        with ThreadPoolExecutor(READERS) as threads:
            hasher = PictureHasher(folder, source)
            yield partial(map_ahead, lambda block: threads.submit(hasher, block), 2 * READERS)
    else:
        with engine.map(PictureHasher, folder, source) as hash_blocks:
            yield hash_blocks


class PictureHasher:
    """Reads pictures, each once, and hashes them.

    Args:
        folder: it has images.npy if the pictures are not files; files are relative to it.
        source: see `hash_picture_table`.
    """

    def __init__(self, folder: Path, source: str | None) -> None:
        self._folder, self._source = folder, source
        array = folder / IMAGES_ARRAY
        self._pixels = np.load(array, mmap_mode="r") if array.exists() else None

    def __call__(self, block: tuple[int, bytes]) -> Hashed:
        """Hashes of the names and contents, uint64 (N,), and keys, uint64 (N, 2), of some rows of images.tsv.

        Args:
            block: the number of its first row, and its lines.
        """
        start, lines = block
        rows = lines.decode().split("\n")[:-1]
        names_N = hash_pictures([row.partition("\t")[0] for row in rows], self._source)
        if self._pixels is None and lines.count(b"\t\n") == len(rows):  # none has a file
            return names_N, np.zeros(len(rows), "<u8"), np.zeros((len(rows), 2), "<u8")
        return names_N, *hash_and_key(self._content(number, row) for number, row in enumerate(rows, start))

    def _content(self, number: int, row: str) -> bytes:
        """A picture's bytes; empty if it is missing or unreadable, which is reported when the picture is used."""
        if self._pixels is not None:
            return bytes(self._pixels[number].tobytes())
        if row.endswith("\t"):
            return b""
        try:
            return read_bytes(self._folder / place(row.rpartition("\t")[2]))
        except OSError:
            return b""


def _numbered_blocks(table: Path) -> Iterator[tuple[int, bytes]]:
    """The number of the first row, and the lines, of PICTURES rows at a time."""
    with open(table, "rb") as handle:
        next(handle)
        start = 0
        while lines := list(islice(handle, PICTURES)):
            yield start, b"".join(lines)
            start += len(lines)


def side_hashes(prefix: Path) -> Path:
    """Where binarising leaves the hashes of one side of a bitext, until `fingerprint_bitext` collects them."""
    return side_file(prefix, "hashes")


def fingerprint_bitext(folder: Path, pairs: list[Pair], captions: Mapping[str, int]) -> None:
    """Add the hashes of a folder's bitext, which binarising left next to it, to the fingerprints.

    It may be called again after an interruption: what an earlier call added is removed first.

    Args:
        folder: `fingerprint_tables` has been called on it.
        pairs: all pairs of the bitext.
        captions: split -> number of its captions in the tables.
    """
    with FingerprintWriter(folder) as writer:
        for split in {pair[0] for pair in pairs}:
            writer.truncate(split, "texts", captions.get(split, 0))
        for pair in pairs:
            for prefix in side_prefixes(folder / BITEXT, pair):
                writer.add(pair[0], "texts", np.fromfile(side_hashes(prefix), "<u8"))


def row_blocks(table: Path) -> Iterator[list[list[str]]]:
    """The rows of a table, at most BLOCK at a time."""
    with open(table, encoding="utf-8", newline="\n") as handle:
        next(handle)
        while rows := [line.rstrip("\n").split("\t") for line in islice(handle, BLOCK)]:
            yield rows
