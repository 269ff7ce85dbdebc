"""The leakage check: which items of a test set are also trained on.

Test sets share pictures and sentences with training sets: 800 of XTD10's 1,000 pictures are in COCO's train2014, and
Multi30K's pictures are Flickr30k's. So each prepared folder keeps hashes of its pictures and texts in
fingerprints/SPLIT.KIND.u64: little-endian uint64, in any order, duplicates allowed. The hash 0 marks an item that
cannot be compared. `prepare.fingerprints` writes the files; this module reads and compares them.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.data.manifest import check_files, manifests_in
from mclip_kit.errors import MALFORMED, DataError
from mclip_kit.layout import FINGERPRINTS, MANIFEST
from mclip_kit.storage import exists, fetch, names, place
from mclip_kit.urls import root

KINDS = {
    "pictures": ("picture", " (by name)"),
    "contents": ("picture", " (by content)"),
    "texts": ("text", ""),
}
"""Kind of hash -> (noun, how it was compared), as messages print it."""
CHUNK = 2**20  # hashes of a training split that are in memory at once


@dataclass(frozen=True)
class Leak:
    """What training data and a test split share.

    Attributes:
        trained: folder and training splits.
        held_out: folder and test split.
        kind: one of `KINDS`.
        count: distinct items of the test split that are trained on.
        of: distinct items of the test split.
    """

    trained: str
    held_out: str
    kind: str
    count: int
    of: int

    def line(self) -> str:
        """The leak in one human-readable line."""
        noun, how = KINDS[self.kind]
        are, them = ("is", "it") if self.count == 1 else ("are", "them")
        items = f"{self.count:,} of {self.of:,} {noun}{'s' if self.of > 1 else ''}{how}"
        return f"{self.held_out}: {items} {are} in {self.trained}; scores on {them} are no longer held out"


def known_overlaps(folder: Path) -> list[str]:
    """What a prepared corpus is known to share with training data, as its declaration says; empty in older folders."""
    try:
        corpus = json.loads(fetch(folder / MANIFEST).read_text(encoding="utf-8"))["corpus"]
        return [str(line) for line in corpus.get("overlaps", [])]
    except (OSError, *MALFORMED):
        return []  # a folder that is not prepared, or by an earlier version


def leaks(trained: Mapping[Path, Collection[str]], held_out: Iterable[Path]) -> list[Leak]:
    """Compare training splits with every split that has a name starting with `test`.

    Memory holds all test hashes, and one chunk of training hashes at a time.

    Args:
        trained: folder -> splits that are trained on. A folder without fingerprints is skipped; see
            `without_fingerprints`.
        held_out: folders with test splits. If one is also trained on, its tests are compared with its own training
            splits too.
    Returns:
        Sorted by test split, training folder and kind.
    Raises:
        DataError: a file is damaged.
    """
    found = []
    splits_held = [(folder, split) for folder in held_out for split in _splits(folder, "test")]
    for kind in KINDS:
        tests = {f"{folder} {split}": _distinct(folder, split, kind) for folder, split in splits_held}
        sought_N = _union(tests.values())
        for folder, splits in trained.items() if len(sought_N) else ():
            chunks = (chunk for split in sorted(set(splits)) for chunk in _chunks(folder, split, kind))
            shared_N = _intersect(sought_N, chunks)
            for name, hashes_N in tests.items():
                count = int(np.isin(hashes_N, shared_N, assume_unique=True).sum())
                if count:
                    found.append(Leak(f"{folder} {', '.join(sorted(set(splits)))}", name, kind, count, len(hashes_N)))
    order = list(KINDS)
    return sorted(found, key=lambda leak: (leak.held_out, leak.trained, order.index(leak.kind)))


def _intersect(sought_N: np.ndarray, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Those of the sorted hashes that occur in a chunk.

    Sorting a chunk takes a tenth of the time of looking up each of its hashes.
    """
    found_N = np.zeros(len(sought_N), bool)
    for chunk in chunks:
        chunk.sort()
        places_N = np.searchsorted(chunk, sought_N).clip(max=len(chunk) - 1)
        found_N |= chunk[places_N] == sought_N
    return sought_N[found_N]


def held_out_texts(folders: Iterable[Path]) -> np.ndarray:
    """Hashes of the texts of all splits but those whose names start with `train`, distinct and sorted, uint64.

    Raises:
        DataError: a file is damaged.
    """
    return _union(chunk for folder, split in _held_out(folders) for chunk in _chunks(folder, split, "texts"))


def held_out_files(folders: Iterable[Path]) -> list[Path]:
    """The files that have these hashes."""
    files = (fingerprint_file(folder, split, "texts") for folder, split in _held_out(folders))
    return sorted(file for file in files if exists(file))


def _held_out(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    return [(folder, split) for folder in folders for split in _splits(folder, "") if not split.startswith("train")]


def _distinct(folder: Path, split: str, kind: str) -> np.ndarray:
    hashes_N = _union(_chunks(folder, split, kind))
    return hashes_N[hashes_N != 0]


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, "<u8"), *arrays]))


def _chunks(folder: Path, split: str, kind: str) -> Iterator[np.ndarray]:
    """A file's hashes, at most CHUNK at a time; nothing if there is no file."""
    path = fetch(fingerprint_file(folder, split, kind))
    if not path.exists():
        return
    if path.stat().st_size % 8:
        raise DataError(f"{path}: damaged, its length is not a multiple of 8; prepare it with --again")
    check_files(folder, [f"{FINGERPRINTS}/{path.name}"])
    with open(path, "rb") as handle:
        while len(chunk := np.fromfile(handle, "<u8", CHUNK)):
            yield chunk


def fingerprint_file(folder: Path, split: str, kind: str) -> Path:
    """Where a prepared folder keeps the hashes of a split; `kind` is one of `KINDS`."""
    return folder / FINGERPRINTS / f"{split}.{kind}.u64"


def _splits(folder: Path, start: str) -> list[str]:
    found = (name for name in names(folder / FINGERPRINTS) if name.startswith(start) and name.endswith(".u64"))
    return sorted({name.removesuffix(".u64").rpartition(".")[0] for name in found})


def leaks_of(folder: Path) -> list[Leak]:
    """Leaks that a prepared folder takes part in: with its own splits and with those of the folders next to it."""
    siblings = held_out_beside(folder)
    others = {other: _splits(other, "train") for other in siblings if other != folder}
    return leaks({folder: _splits(folder, "train")}, siblings) + leaks(others, [folder])


def held_out_beside(folder: Path) -> list[Path]:
    """The prepared folders in the same parent folder, `folder` included, that have fingerprints to compare."""
    parent = (folder if folder.name else folder.resolve()).parent
    prepared = [folder] if parent.parent == root() else [path.parent for path in manifests_in(parent)]  # a bucket
    return [other for other in prepared if not without_fingerprints([other])]


def without_fingerprints(folders: Iterable[Path]) -> list[Path]:
    """Folders that cannot be checked: fairseq-preprocess and earlier versions of this package wrote no hashes."""
    return [folder for folder in folders if not exists(folder / FINGERPRINTS)]


def leaks_into(found: Iterable[Leak], folder: Path, split: str) -> list[Leak]:
    """The leaks that concern one test split; two spellings of a path are the same folder."""
    named = [(leak, leak.held_out.rpartition(" ")) for leak in found]
    return [leak for leak, (where, _, test) in named if test == split and place(where).resolve() == folder.resolve()]


def as_json(found: Iterable[Leak]) -> list[dict[str, Any]]:
    """Leaks as a run folder's leakage.json keeps them."""
    return [asdict(leak) for leak in found]


def read_json(path: Path) -> list[Leak]:
    """The leaks of a run folder's leakage.json; empty if there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    if not fetch(path).exists():
        return []
    try:
        return [Leak(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except MALFORMED:
        raise DataError(f"{path}: not a list of leaks; remove it") from None
