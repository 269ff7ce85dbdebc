"""Hashes of a prepared folder's pictures and texts, for the leakage check; `data.leakage` compares them.

A picture is hashed by its name and by its content, a text by its letters, digits and marks. The hash is 0 if there
is nothing to compare.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from mclip_kit.data.fairseq_io import side_file
from mclip_kit.data.images import picture_id, read_bytes
from mclip_kit.data.leakage import fingerprint_file
from mclip_kit.data.prepare.writer import Pair, side_prefixes
from mclip_kit.layout import BITEXT, CAPTIONS_TABLE, FINGERPRINTS, IMAGES_ARRAY, IMAGES_TABLE
from mclip_kit.progress import tqdm

BLOCK = 4096  # table rows, or texts, that are hashed at once
READERS = 8  # threads that read picture files
NO_HASH = bytes(8)


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Hash texts by their letters, digits and marks, uint64 (N,); 0 for a text that has none.

    Case, width, punctuation and spacing do not count: they are what corpora change about a caption.
    """
    rest = iter(texts)
    digests: list[bytes] = []
    while block := list(islice(rest, BLOCK)):
        digests += [_digest(text.encode()) for text in _normalize(block)]
    return _as_array(digests)


def hash_pictures(names: Iterable[str], source: str | None) -> np.ndarray:
    """Hash pictures by their names, uint64 (N,); 0 for a name that is unique in its own corpus only.

    Args:
        names: as a corpus spells them.
        source: where the pictures are from (`Corpus.pictures`).
    """
    names = (picture_id(name, source) for name in names)
    return _as_array([_digest(name.encode()) if ":" in name else NO_HASH for name in names])


def hash_contents(contents: Iterable[bytes]) -> np.ndarray:
    """Hash pictures by their bytes, uint64 (N,); 0 for empty bytes."""
    return _as_array([_digest(content) for content in contents])


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest() if content else NO_HASH


def _as_array(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "<u8")


def _normalize(texts: list[str]) -> list[str]:
    """NFKC and casefold; whatever is between letters, digits and marks becomes one space.

    All texts are processed as one string with a line each: one call a text would take longer than the work itself.
    """
    lines = "\n".join([text.replace("\n", " ") for text in texts])
    if not unicodedata.is_normalized("NFKC", lines):  # this check is far cheaper than normalising
        lines = "\n".join([_nfkc(line) for line in lines.split("\n")])
    codes_N = np.frombuffer(lines.casefold().encode("utf-32-le", "surrogatepass"), "<u4")
    kept = _replace_others(codes_N).tobytes().decode("utf-32-le")
    return [" ".join(line.split()) for line in kept.split("\n")]


def _nfkc(line: str) -> str:
    return line if unicodedata.is_normalized("NFKC", line) else unicodedata.normalize("NFKC", line)


_REPLACEMENT = np.zeros((0x1100, 0x100), "<u4")
_FILLED = np.zeros(0x1100, bool)
"""A table: code point -> itself or a space. Blocks of 256 code points are filled when they first occur."""


def _replace_others(codes_N: np.ndarray) -> np.ndarray:
    """Code points, with a space for each that is not a letter, a digit, a mark or a line feed."""
    for row in np.flatnonzero(np.bincount(codes_N >> 8, minlength=len(_FILLED)).astype(bool) & ~_FILLED):
        codes = range(int(row) << 8, (int(row) + 1) << 8)
        _REPLACEMENT[row] = [code if _counts(code) else ord(" ") for code in codes]
        _FILLED[row] = True
    return _REPLACEMENT.reshape(-1)[codes_N]


def _counts(code: int) -> bool:
    if 0x180B <= code <= 0x180F or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return False  # Unicode calls variation selectors marks, but an emoji may have one or not
    return code == ord("\n") or unicodedata.category(chr(code))[0] in "LNM"


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


def fingerprint_tables(folder: Path, splits: Mapping[str, tuple[str, ...]], source: str | None) -> None:
    """Hash the names and contents of the pictures, and the captions, of a folder's tables.

    Args:
        folder: it has images.tsv and captions.tsv, and images.npy if the pictures are not files.
        splits: picture -> the splits that it is in.
        source: where the pictures are from; None: their names are unique in this folder only.
    """
    with FingerprintWriter(folder) as writer:
        _fingerprint_pictures(folder, splits, source, writer)
        for rows in _row_blocks(folder / CAPTIONS_TABLE):
            hashes_N = hash_texts([row[3] for row in rows])
            row_splits = np.array([row[2] for row in rows])
            for split in np.unique(row_splits):
                writer.add(str(split), "texts", hashes_N[row_splits == split])


def _fingerprint_pictures(
    folder: Path, splits: Mapping[str, tuple[str, ...]], source: str | None, writer: FingerprintWriter
) -> None:
    pixels = np.load(folder / IMAGES_ARRAY, mmap_mode="r") if (folder / IMAGES_ARRAY).exists() else None
    bar = tqdm(total=len(splits), desc="pictures: hash", unit="picture", leave=False, disable=len(splits) < 1000)
    start = 0
    with ThreadPoolExecutor(READERS) as readers, bar:
        for rows in _row_blocks(folder / IMAGES_TABLE):
            names = [row[0] for row in rows]
            if pixels is None:
                contents = list(readers.map(_content, [row[3] for row in rows]))
            else:
                contents = [picture.tobytes() for picture in pixels[start : start + len(rows)]]
            hashed = {"pictures": hash_pictures(names, source), "contents": hash_contents(contents)}
            for split in {split for name in names for split in splits[name]}:
                inside_N = np.array([split in splits[name] for name in names])
                for kind, hashes_N in hashed.items():
                    writer.add(split, kind, hashes_N[inside_N])
            start += len(rows)
            bar.update(len(rows))


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


def _row_blocks(table: Path) -> Iterator[list[list[str]]]:
    """The rows of a table, at most BLOCK at a time."""
    with open(table, encoding="utf-8", newline="\n") as handle:
        next(handle)
        while rows := [line.rstrip("\n").split("\t") for line in islice(handle, BLOCK)]:
            yield rows


def _content(file: str) -> bytes:
    """A picture's bytes; empty if it is missing or unreadable, which is reported when the picture is used."""
    try:
        return read_bytes(Path(file)) if file else b""
    except OSError:
        return b""
