"""Hashes of a prepared folder's pictures and texts, for the leakage check; `data.leakage` compares them.

`hashes.py` says what is equal.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from mclip_kit.data.fairseq_io import side_file
from mclip_kit.data.images import read_bytes
from mclip_kit.data.leakage import fingerprint_file
from mclip_kit.data.prepare.hashes import content_keys, hash_contents, hash_pictures, hash_texts
from mclip_kit.data.prepare.writer import Pair, side_prefixes
from mclip_kit.layout import BITEXT, CAPTIONS_TABLE, FINGERPRINTS, IMAGES_ARRAY, IMAGES_TABLE
from mclip_kit.progress import tqdm

BLOCK = 4096  # table rows that are hashed at once
READERS = 8  # threads that read picture files


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


def fingerprint_tables(folder: Path, splits: Mapping[str, tuple[str, ...]], hashed: Mapping[str, np.ndarray]) -> None:
    """Write the hashes of the pictures, and those of the captions, of a folder's tables.

    Args:
        folder: it has images.tsv and captions.tsv.
        splits: picture -> the splits that it is in.
        hashed: of the pictures; see `hash_picture_table`.
    """
    with FingerprintWriter(folder) as writer:
        for split in {split for own in splits.values() for split in own}:
            inside_N = np.fromiter((split in own for own in splits.values()), bool, len(splits))
            for kind, hashes_N in hashed.items():
                writer.add(split, kind, hashes_N[inside_N])
        for rows in row_blocks(folder / CAPTIONS_TABLE):
            hashes_N = hash_texts(row[3] for row in rows)
            row_splits = np.array([row[2] for row in rows])
            for split in np.unique(row_splits):
                writer.add(str(split), "texts", hashes_N[row_splits == split])


def hash_picture_table(folder: Path, count: int, source: str | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Hashes of all pictures of a folder, in the order of images.tsv: kind -> uint64 (N,); and keys, uint64 (N, 2).

    Args:
        folder: it has images.tsv, and images.npy if the pictures are not files.
        count: N, for the progress bar.
        source: where the pictures are from; None: their names are unique in this folder only.
    """
    pixels = np.load(folder / IMAGES_ARRAY, mmap_mode="r") if (folder / IMAGES_ARRAY).exists() else None
    bar = tqdm(total=count, desc="pictures: hash", unit="picture", leave=False, disable=count < 1000)
    found: dict[str, list[np.ndarray]] = {"pictures": [], "contents": []}
    keys = [np.empty((0, 2), "<u8")]
    start = 0
    with ThreadPoolExecutor(READERS) as readers, bar:
        for rows in row_blocks(folder / IMAGES_TABLE):
            if pixels is None:
                contents = list(readers.map(_content, [row[3] and folder / row[3] for row in rows]))
            else:
                contents = [picture.tobytes() for picture in pixels[start : start + len(rows)]]
            found["pictures"].append(hash_pictures([row[0] for row in rows], source))
            found["contents"].append(hash_contents(contents))
            keys.append(content_keys(contents))
            start += len(rows)
            bar.update(len(rows))
    hashes = {kind: np.concatenate([np.empty(0, "<u8"), *blocks]) for kind, blocks in found.items()}
    return hashes, np.concatenate(keys)


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


def _content(file: str | Path) -> bytes:
    """A picture's bytes; empty if it is missing or unreadable, which is reported when the picture is used."""
    try:
        return read_bytes(Path(file)) if file else b""
    except OSError:
        return b""
