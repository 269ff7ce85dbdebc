"""What a prepared folder's pictures and texts are known by, written when it is prepared; `leakage` compares them."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mclip_kit.data.images import read_bytes
from mclip_kit.data.leakage import Fingerprints, hash_contents, hash_pictures, hash_texts
from mclip_kit.data.prepare.binarize import hashes
from mclip_kit.data.prepare.writer import Pair, prefixes

BLOCK = 4096  # rows that are hashed at once
READERS = 8  # threads that read picture files


def fingerprint_tables(folder: Path, splits: Mapping[str, tuple[str, ...]], source: str | None) -> None:
    """Hash the pictures' names and contents, and the captions, of a folder's tables.

    Args:
        folder: it has images.tsv and captions.tsv, and images.npy where pictures are no files.
        splits: picture -> the splits that it is in.
        source: where the pictures are from, as names are unique there; None: the folder alone has such names.
    """
    pixels = np.load(folder / "images.npy", mmap_mode="r") if (folder / "images.npy").exists() else None
    with Fingerprints(folder) as fingerprints, ThreadPoolExecutor(READERS) as readers:
        bar = tqdm(total=len(splits), desc="pictures: hash", unit="picture", leave=False, disable=len(splits) < 1000)
        start = 0
        for rows in _blocks(folder / "images.tsv"):
            names = [row[0] for row in rows]
            if pixels is None:
                contents = list(readers.map(_content, [row[3] for row in rows]))
            else:
                contents = [picture.tobytes() for picture in pixels[start : start + len(rows)]]
            hashed = {"pictures": hash_pictures(names, source), "contents": hash_contents(contents)}
            for split in {split for name in names for split in splits[name]}:
                inside_N = np.array([split in splits[name] for name in names])
                for kind, hashes_N in hashed.items():
                    fingerprints.add(split, kind, hashes_N[inside_N])
            start += len(rows)
            bar.update(len(rows))
        bar.close()
        for rows in _blocks(folder / "captions.tsv"):
            hashes_N = hash_texts([row[3] for row in rows])
            row_splits = np.array([row[2] for row in rows])
            for split in np.unique(row_splits):
                fingerprints.add(str(split), "texts", hashes_N[row_splits == split])


def fingerprint_bitext(folder: Path, pairs: list[Pair], captions: Mapping[str, int]) -> None:
    """Gather the hashes that binarising has left beside the sides of a folder's bitext.

    Args:
        folder: `fingerprint_tables` has been there; this function may have been, too.
        pairs: all of the bitext.
        captions: split -> how many captions of it are in the tables.
    """
    with Fingerprints(folder) as fingerprints:
        for split in {pair[0] for pair in pairs}:
            fingerprints.cut(split, "texts", captions.get(split, 0))
        for pair in pairs:
            for prefix in prefixes(folder / "bitext", pair):
                fingerprints.add(pair[0], "texts", np.fromfile(hashes(prefix), "<u8"))


def _blocks(table: Path) -> Iterator[list[list[str]]]:
    """Rows of a table, some at a time."""
    with open(table, encoding="utf-8", newline="\n") as handle:
        next(handle)
        while rows := [line.rstrip("\n").split("\t") for line in islice(handle, BLOCK)]:
            yield rows


def _content(file: str) -> bytes:
    """A picture's bytes; none where it is missing or cannot be read, which is the reader's to say."""
    try:
        return read_bytes(Path(file)) if file else b""
    except OSError:
        return b""
