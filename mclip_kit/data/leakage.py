"""The leakage guard: whether a test set lies in what is trained on.

Test sets share pictures and sentences with training sets: 800 of XTD10's 1,000 pictures are in COCO's train2014,
Multi30K's are Flickr30k's. So each prepared folder keeps hashes of what it holds in fingerprints/SPLIT.KIND.u64:
little-endian uint64 in any order, duplicates allowed. 0 stands for what cannot be compared.
"""

import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from mclip_kit.data.picture_ids import picture_id
from mclip_kit.errors import DataError

FOLDER = "fingerprints"
LEAKAGE = "leakage.json"  # in a run's folder
KINDS = {
    "pictures": ("picture", " (by name)"),
    "contents": ("picture", " (by content)"),
    "texts": ("text", ""),
}
"""Kind of hash -> how people are told."""
BLOCK = 2**12  # texts that are normalised at once
CHUNK = 2**20  # hashes of a training split that are in memory at once
NOTHING = bytes(8)


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Hash texts by their letters, digits and marks alone; 0 where there are none.

    Case, width, punctuation and spacing are what corpora change about a caption.
    """
    rest = iter(texts)
    digests: list[bytes] = []
    while block := list(islice(rest, BLOCK)):
        digests += [_digest(text.encode()) for text in _normal(block)]
    return _array(digests)


def hash_pictures(names: Iterable[str], source: str | None) -> np.ndarray:
    """Hash pictures by their names; 0 for a name that only its own corpus knows: there the content has to tell.

    Args:
        names: as a corpus gives them.
        source: where the pictures are from (`Corpus.pictures`).
    """
    names = (picture_id(name, source) for name in names)
    return _array([_digest(name.encode()) if ":" in name else NOTHING for name in names])


def hash_contents(contents: Iterable[bytes]) -> np.ndarray:
    """Hash pictures by their bytes; 0 where there are none."""
    return _array([_digest(content) for content in contents])


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest() if content else NOTHING


def _array(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "<u8")


def _normal(texts: list[str]) -> list[str]:
    """NFKC, casefolded, with one space for whatever else is between letters, digits and marks.

    Texts go through as one, line by line, as calls for each would take longer than the work.
    """
    lines = "\n".join([text.replace("\n", " ") for text in texts])
    if not unicodedata.is_normalized("NFKC", lines):  # to ask is far cheaper than to do
        lines = "\n".join([_nfkc(line) for line in lines.split("\n")])
    codes_N = np.frombuffer(lines.casefold().encode("utf-32-le", "surrogatepass"), "<u4")
    kept = _kept(codes_N).tobytes().decode("utf-32-le")
    return [" ".join(line.split()) for line in kept.split("\n")]


def _nfkc(line: str) -> str:
    return line if unicodedata.is_normalized("NFKC", line) else unicodedata.normalize("NFKC", line)


_KEPT = np.zeros((0x1100, 0x100), "<u4")
_KNOWN = np.zeros(0x1100, bool)
"""Code point -> itself, or a space; filled for 256 code points at a time, as they occur."""


def _kept(codes_N: np.ndarray) -> np.ndarray:
    """Code points, a space in place of each that is neither a letter, a digit, a mark nor a line's end."""
    for row in np.flatnonzero(np.bincount(codes_N >> 8, minlength=len(_KNOWN)).astype(bool) & ~_KNOWN):
        codes = range(int(row) << 8, (int(row) + 1) << 8)
        _KEPT[row] = [code if _is_kept(code) else ord(" ") for code in codes]
        _KNOWN[row] = True
    return _KEPT.reshape(-1)[codes_N]


def _is_kept(code: int) -> bool:
    if 0x180B <= code <= 0x180F or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return False  # a variation selector is a mark only in name, and follows emoji or not
    return code == ord("\n") or unicodedata.category(chr(code))[0] in "LNM"


class Fingerprints:
    """Writes a folder's hashes as they come; what is there already stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[Path, IO[bytes]] = {}
        self._stack = ExitStack()

    def add(self, split: str, kind: str, hashes: np.ndarray) -> None:
        """Append hashes of one of `KINDS`."""
        path = _file(self._folder, split, kind)
        if path not in self._files:
            self._files[path] = self._open(path)
        self._files[path].write(hashes.astype("<u8").tobytes())

    def cut(self, split: str, kind: str, count: int) -> None:
        """Keep the first `count` hashes; those behind are of an attempt that was interrupted."""
        path = _file(self._folder, split, kind)
        if path.exists():
            os.truncate(path, 8 * count)

    def _open(self, path: Path) -> IO[bytes]:
        """At its end, without what a killed process has left of a hash."""
        path.touch()
        os.truncate(path, path.stat().st_size // 8 * 8)
        return self._stack.enter_context(open(path, "ab"))

    def close(self) -> None:
        """Make the files whole."""
        self._stack.close()
        self._files.clear()

    def __enter__(self) -> "Fingerprints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Leak:
    """What a training part and a test split share.

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
        """The leak, for people."""
        noun, how = KINDS[self.kind]
        are, them = ("is", "it") if self.count == 1 else ("are", "them")
        items = f"{self.count:,} of {self.of:,} {noun}{'s' if self.of > 1 else ''}{how}"
        return f"{self.held_out}: {items} {are} in {self.trained}; scores on {them} are no longer held out"


def leaks(trained: Mapping[Path, Collection[str]], held_out: Iterable[Path]) -> list[Leak]:
    """Compare training splits with every split whose name starts with `test`, in constant memory for the former.

    Args:
        trained: folder -> splits that are trained on; a folder without fingerprints says nothing (`unknown`).
        held_out: folders; one that is trained on too has its own tests compared with its own training.
    Returns:
        By test split, training folder and kind.
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
            met_N = _met(sought_N, chunks)
            for name, hashes_N in tests.items():
                count = int(np.isin(hashes_N, met_N, assume_unique=True).sum())
                if count:
                    found.append(Leak(f"{folder} {', '.join(sorted(set(splits)))}", name, kind, count, len(hashes_N)))
    order = list(KINDS)
    return sorted(found, key=lambda leak: (leak.held_out, leak.trained, order.index(leak.kind)))


def _met(sought_N: np.ndarray, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Those of sorted hashes that occur; sorting a chunk takes a tenth of the time of looking each of it up."""
    met_N = np.zeros(len(sought_N), bool)
    for chunk in chunks:
        chunk.sort()
        places_N = np.searchsorted(chunk, sought_N).clip(max=len(chunk) - 1)
        met_N |= chunk[places_N] == sought_N
    return sought_N[met_N]


def _distinct(folder: Path, split: str, kind: str) -> np.ndarray:
    hashes_N = _union(_chunks(folder, split, kind))
    return hashes_N[hashes_N != 0]


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, "<u8"), *arrays]))


def _chunks(folder: Path, split: str, kind: str) -> Iterator[np.ndarray]:
    """A file's hashes, some at a time; none where there is no file."""
    path = _file(folder / FOLDER, split, kind)
    if not path.exists():
        return
    if path.stat().st_size % 8:
        raise DataError(f"{path}: damaged, its length is no multiple of 8; remove {folder} and prepare it again")
    with open(path, "rb") as handle:
        while len(chunk := np.fromfile(handle, "<u8", CHUNK)):
            yield chunk


def _file(folder: Path, split: str, kind: str) -> Path:
    return folder / f"{split}.{kind}.u64"


def _splits(folder: Path, start: str) -> list[str]:
    return sorted({path.stem.rpartition(".")[0] for path in (folder / FOLDER).glob(f"{start}*.u64")})


def leaks_of(folder: Path) -> list[Leak]:
    """What a prepared folder's training splits and tests share with its own and with those of the folders beside it."""
    beside = held_out_beside(folder)
    others = {other: _splits(other, "train") for other in beside if other != folder}
    return leaks({folder: _splits(folder, "train")}, beside) + leaks(others, [folder])


def held_out_beside(folder: Path) -> list[Path]:
    """The prepared folders beside a prepared folder, and itself, whose tests can be compared."""
    parent = (folder if folder.name else folder.resolve()).parent
    prepared = sorted(path.parent for path in parent.glob("*/manifest.json"))
    return [other for other in prepared if not other.name.startswith(".") and not unknown([other])]


def unknown(folders: Iterable[Path]) -> list[Path]:
    """Those without fingerprints, as fairseq-preprocess and earlier versions leave them: nothing is known of them."""
    return [folder for folder in folders if not (folder / FOLDER).is_dir()]


def as_json(found: Iterable[Leak]) -> list[dict[str, Any]]:
    """Leaks for a run folder's leakage.json."""
    return [asdict(leak) for leak in found]


def concerning(found: Iterable[Leak], folder: Path, split: str) -> list[Leak]:
    """Those of a test split that is scored on, however its folder is spelled."""
    named = [(leak, leak.held_out.rpartition(" ")) for leak in found]
    return [leak for leak, (place, _, test) in named if test == split and Path(place).resolve() == folder.resolve()]


def read_json(path: Path) -> list[Leak]:
    """What `as_json` gave, from a file; a run without one has none.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        return [Leak(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):
        raise DataError(f"{path}: not a list of leaks; remove it") from None
