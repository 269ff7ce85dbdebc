"""Reads and writes fairseq's files: Dictionary and binarised sentences. The only module that imports fairseq.

`fairseq-preprocess` writes a folder of parallel sentences as `dict.LANG.txt` for each language and
`SPLIT.SRC-TGT.LANG.bin/.idx` for each side. A stored sentence ends with `</s>` and has no `<s>`.
"""

import logging
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from mclip_kit.data.sequences import split
from mclip_kit.data.tokenizer import BOS
from mclip_kit.errors import DataError
from mclip_kit.files import write_whole

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")  # magic, version, integer type, sentences; then int32 sizes and int64 pointers
CODES = {np.uint16: 8, np.uint32: 9}  # integer type -> its number in fairseq's header
POINTERS = 2**20  # pointers that are written at once


@cache
def fairseq_data() -> Any:
    """fairseq.data, imported when it is first needed; preparing a corpus does not need it.

    Importing it takes long (it imports torch), sets the root logger to DEBUG and logs an advertisement. The settings
    of the root logger are restored.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    logging.getLogger("fairseq.tasks").setLevel(logging.ERROR)
    import fairseq.data

    root.setLevel(level)
    root.handlers[:] = handlers
    return fairseq.data


def write_dictionary(pieces: Sequence[str], *paths: Path) -> None:
    """Write dict.txt as fairseq's Dictionary does: a line `piece count` for each piece, without the special tokens."""
    content = " 1\n".join([*pieces, ""]).encode()
    for path in paths:
        with write_whole(path) as temporary:
            temporary.write_bytes(content)


def read_dictionary(path: Path) -> list[str]:
    """The pieces of a dict.txt in order, without the four special tokens.

    Raises:
        DataError: it is missing or not a dictionary.
    """
    try:
        with open(path, encoding="utf-8") as handle:  # given a path, fairseq would raise a bare Exception
            dictionary = fairseq_data().Dictionary.load(handle)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable fairseq dictionary ({' '.join(str(error).split())})") from None
    return list(dictionary.symbols[dictionary.nspecial :])


class SentenceWriter:
    """Writes `.bin` and `.idx` as a stream, with the same bytes as `fairseq-preprocess`; see `sentence_writer`."""

    def __init__(self, data: IO[bytes], sizes: IO[bytes], dtype: type[np.integer[Any]]) -> None:
        self._data, self._sizes, self.dtype, self.count = data, sizes, dtype, 0

    def add(self, ids: np.ndarray, sizes_N: np.ndarray) -> None:
        """Append N sentences.

        Args:
            ids: of all sentences, one after the other, each with `</s>` at its end and without `<s>`.
            sizes_N: number of ids of each.
        """
        self._data.write(ids.astype(self.dtype, copy=False).data)  # tofile would hide the reason if the disk is full
        self._sizes.write(sizes_N.astype(np.int32, copy=False).data)
        self.count += len(sizes_N)


@contextmanager
def sentence_writer(prefix: Path, vocabulary: int) -> Iterator[SentenceWriter]:
    """A writer of `prefix.bin` and `prefix.idx`; they exist, whole, only after the block ends without an error.

    Args:
        prefix: their path without the suffix.
        vocabulary: number of entries of the dictionary, which decides the integer type, as in fairseq.
    """
    dtype = np.uint16 if vocabulary < 65500 else np.uint32
    with write_whole(side_file(prefix, "bin")) as data, write_whole(side_file(prefix, "idx")) as index:
        sizes = index.with_name(f"{index.name}.sizes")
        try:
            with open(data, "wb") as data_handle, open(sizes, "wb") as size_handle:
                writer = SentenceWriter(data_handle, size_handle, dtype)
                yield writer
            _write_index(index, sizes, writer)
        finally:
            sizes.unlink(missing_ok=True)


def _write_index(index: Path, sizes: Path, writer: SentenceWriter) -> None:
    with open(index, "wb") as handle, open(sizes, "rb") as counted:
        handle.write(HEADER.pack(MAGIC, 1, CODES[writer.dtype], writer.count))
        shutil.copyfileobj(counted, handle)
        counted.seek(0)
        offset = 0
        for start in range(0, writer.count, POINTERS):
            block = np.fromfile(counted, np.int32, min(POINTERS, writer.count - start)).astype(np.int64)
            ends = offset + block.cumsum() * np.dtype(writer.dtype).itemsize
            handle.write(np.concatenate(([offset], ends[:-1])).astype(np.int64).data)
            offset = int(ends[-1])


def write_sentences(sentences: Sequence[np.ndarray], prefix: Path, vocabulary: int) -> None:
    """Write `prefix.bin` and `prefix.idx` from sentences in memory; the arguments are those of `sentence_writer`."""
    with sentence_writer(prefix, vocabulary) as writer:
        writer.add(
            np.concatenate([np.zeros(0, np.int64), *sentences]), np.array([len(ids) for ids in sentences], np.int32)
        )


def side_file(prefix: Path, suffix: str) -> Path:
    """One of the files of a binarised side: its prefix, a dot and a suffix."""
    return prefix.with_name(f"{prefix.name}.{suffix}")


class Sentences(Sequence[np.ndarray]):
    """Binarised sentences, memory-mapped; an item is int32 (T,), `<s> ... </s>`.

    Attributes:
        sizes: int32 (N,), stored ids of each sentence; mapped.

    Args:
        prefix: path of `.bin` and `.idx` without the suffix.
        max_tokens: longer sentences lose their last pieces; None: they are read whole.
    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, prefix: Path, max_tokens: int | None = None) -> None:
        index, data = (side_file(prefix, suffix) for suffix in ("idx", "bin"))
        for path in (index, data):
            if not path.is_file():
                raise DataError(f"{path}: missing; run mclip-kit prepare or fairseq-preprocess")
        _check_whole(index, data)
        self._data = fairseq_data().indexed_dataset.MMapIndexedDataset(str(prefix))
        dtype = self._data._index.dtype
        self._ids = np.memmap(data, dtype, "r") if len(self._data) else np.empty(0, dtype)
        self.sizes = np.asarray(self._data.sizes)
        self._room = None if max_tokens is None else max_tokens - 2

    def highest_id(self) -> int:
        """The highest id of all sentences; reads all of them once."""
        return int(self._ids.max()) if len(self) else 0

    def lengths(self, part: slice = slice(None)) -> np.ndarray:
        """Tokens of some items, int32."""
        sizes_B = self.sizes[part]
        return 1 + (sizes_B if self._room is None else np.minimum(sizes_B, self._room + 1))  # with <s>

    def block(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Some items: their ids, int32, one item after the other; and the tokens of each, int32.

        Args:
            part: start and stop; at least one item.
        """
        sizes_B, lengths_B = self.sizes[part].astype(np.int64), self.lengths(part)
        first = int(self._data._index._pointers[part.start]) // self._ids.itemsize
        stored, ends_B = self._ids[first : first + int(sizes_B.sum())], np.cumsum(sizes_B)
        if self._room is not None and (sizes_B > self._room + 1).any():
            place = np.arange(len(stored)) - np.repeat(ends_B - sizes_B, sizes_B)
            kept = place < self._room
            kept[ends_B - 1] = True
            stored = stored[kept]
        ids = np.full(int(lengths_B.sum()), BOS, np.int32)
        other = np.ones(len(ids), bool)
        other[np.cumsum(lengths_B) - lengths_B] = False
        ids[other] = stored
        return ids, lengths_B

    def run(self, part: slice) -> list[np.ndarray]:
        """Some items as arrays; arguments as of `block`."""
        return split(*self.block(part))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        ids = self._data[int(index)].numpy()
        return np.concatenate(([BOS], ids[:-1][: self._room], ids[-1:])).astype(np.int32)


def _check_whole(index: Path, data: Path) -> None:
    """Refuse files with another length than their header says; fairseq would fail in less clear ways."""
    with open(index, "rb") as handle:
        header = handle.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise DataError(f"{index}: not an index of fairseq's mmap format; prepare it with --again")
        _, version, code, count = HEADER.unpack(header)
        itemsize = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8}.get(code)
        if version != 1 or itemsize is None or index.stat().st_size != HEADER.size + 12 * count:
            raise DataError(f"{index}: damaged; prepare it with --again")
        expected, found = 0, data.stat().st_size
        for start in range(0, count, POINTERS):
            block = min(POINTERS, count - start)
            handle.seek(HEADER.size + 4 * start)
            sizes = np.fromfile(handle, np.int32, block)
            handle.seek(HEADER.size + 4 * count + 8 * start)
            ends = expected + sizes.cumsum(dtype=np.int64) * itemsize
            wrong = np.fromfile(handle, np.int64, block) != np.concatenate(([expected], ends))[:-1]
            if (sizes < 1).any() or wrong.any():  # a sentence has </s> at least
                raise DataError(f"{index}: damaged; prepare it with --again")
            expected = int(ends[-1])
    if found != expected:
        raise DataError(f"{data}: {found} bytes, but its index says {expected}; prepare it with --again")
