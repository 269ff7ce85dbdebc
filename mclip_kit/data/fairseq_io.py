"""fairseq's own files: Dictionary, binarised sentences. The only module that imports fairseq.

A folder of parallel sentences holds, as `fairseq-preprocess` writes it, `dict.LANG.txt` per language and
`SPLIT.SRC-TGT.LANG.bin/.idx` per side. A stored sentence ends with `</s>` and has no `<s>`.
"""

import logging
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mclip_kit.data.tokenizer import BOS
from mclip_kit.errors import DataError
from mclip_kit.files import write_whole

# When it is imported, fairseq sets the root logger to DEBUG and advertises a package for speech.
_root = logging.getLogger()
_before = _root.level, list(_root.handlers)
logging.getLogger("fairseq.tasks").setLevel(logging.ERROR)
from fairseq.data import Dictionary, indexed_dataset  # noqa: E402

_root.setLevel(_before[0])
_root.handlers[:] = _before[1]


MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")  # magic, version, integer type, sentences; then int32 sizes and int64 pointers


def write_dictionary(pieces: Sequence[str], path: Path) -> None:
    """Write dict.txt: one `piece count` line a piece, in order (the specials are fairseq's own)."""
    dictionary = Dictionary()
    for piece in pieces:
        dictionary.add_symbol(piece)
    with write_whole(path) as temporary:
        dictionary.save(str(temporary))


def read_dictionary(path: Path) -> list[str]:
    """The pieces of a dict.txt after the four specials, in order."""
    try:
        with open(path, encoding="utf-8") as handle:  # given a path, fairseq hides the error behind a bare Exception
            dictionary = Dictionary.load(handle)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable fairseq dictionary ({' '.join(str(error).split())})") from None
    return list(dictionary.symbols[dictionary.nspecial :])


def write_sentences(sentences: Sequence[np.ndarray], prefix: Path, vocabulary: int) -> None:
    """Write `prefix.bin` and `prefix.idx`.

    Args:
        sentences: ids with `</s>` at the end and without `<s>`.
        vocabulary: number of ids; it decides the integer type, as in fairseq.
    """
    dtype = indexed_dataset.best_fitting_int_dtype(vocabulary)
    tokens = np.concatenate([np.zeros(0, dtype), *sentences]).astype(dtype)
    with write_whole(prefix.with_name(prefix.name + ".bin")) as temporary:
        tokens.tofile(temporary)
    writer = indexed_dataset.MMapIndexedDataset.Index.writer
    with write_whole(prefix.with_name(prefix.name + ".idx")) as temporary, writer(str(temporary), dtype) as index:
        index.write([len(sentence) for sentence in sentences])


class Sentences(Sequence[np.ndarray]):
    """Binarised sentences, memory-mapped; an item is int32 (T,), `<s> ... </s>`."""

    def __init__(self, prefix: Path, max_tokens: int | None = None) -> None:
        index, data = (prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("idx", "bin"))
        for path in (index, data):
            if not path.is_file():
                raise DataError(f"{path}: missing; run mclip-kit prepare or fairseq-preprocess")
        _check_whole(index, data)
        self._data = indexed_dataset.MMapIndexedDataset(str(prefix))
        self.sizes = np.asarray(self._data.sizes, dtype=np.int64)
        self._room = None if max_tokens is None else max_tokens - 2
        kept = self.sizes if self._room is None else np.minimum(self.sizes, self._room + 1)
        self.lengths = kept + 1  # with <s>

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        ids = self._data[int(index)].numpy()
        return np.concatenate(([BOS], ids[:-1][: self._room], ids[-1:])).astype(np.int32)


def _check_whole(index: Path, data: Path) -> None:
    """Refuse files that are not as long as their header says; fairseq would fail in many ways, and noisily."""
    with open(index, "rb") as handle:
        header = handle.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise DataError(f"{index}: not an index of fairseq's mmap format; prepare the corpus again")
        _, version, code, count = HEADER.unpack(header)
        itemsize = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8}.get(code)
        if version != 1 or itemsize is None or index.stat().st_size != HEADER.size + 12 * count:
            raise DataError(f"{index}: damaged; prepare the corpus again")
        sizes = np.fromfile(handle, np.int32, count)
    expected, found = int(sizes.sum(dtype=np.int64)) * itemsize, data.stat().st_size
    if found != expected:
        raise DataError(f"{data}: {found} bytes where its index says {expected}; prepare the corpus again")
