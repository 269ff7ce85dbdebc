"""The captions of a folder that is being built: an Arrow file with the hashes of their texts.

Shapes: N captions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mclip_kit.data.tables import OF_CAPTIONS

KINDS = pa.schema({**OF_CAPTIONS, "hash": pa.uint64()})
NAME = "captions.part"
ROWS = 2**13  # of a block


class CaptionFile:
    """Writes captions; use it as a context.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._out = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._out, KINDS)
        self._columns: list[list[object]] = [[] for _ in OF_CAPTIONS]
        self._hashes: list[np.ndarray] = []

    def write(self, columns: Sequence[Sequence[object]], hashes_N: np.ndarray) -> None:
        """Append captions: pictures by their numbers, languages, splits and texts; and the hashes of the texts."""
        for held, column in zip(self._columns, columns, strict=True):
            held.extend(column)
        self._hashes.append(hashes_N)
        if len(self._columns[0]) >= ROWS:
            self._flush()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Append captions of another file."""
        self._writer.write_batch(batch)

    def _flush(self) -> None:
        if self._columns[0]:
            columns = [*self._columns, np.concatenate(self._hashes)]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, KINDS.types, strict=True)]
            self._writer.write_batch(pa.record_batch(arrays, schema=KINDS))
            self._columns, self._hashes = [[] for _ in OF_CAPTIONS], []

    def __enter__(self) -> "CaptionFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._out, self._writer:
            if kind is None:
                self._flush()


def caption_blocks(path: Path) -> Iterator[pa.RecordBatch]:
    """The captions of a file, memory-mapped."""
    with pa.memory_map(str(path)) as mapped:
        opened = pa.ipc.open_file(mapped)
        yield from map(opened.get_batch, range(opened.num_record_batches))


def splits_of(block: pa.RecordBatch) -> tuple[list[str], np.ndarray]:
    """The splits of some captions, and the number of each one's split, int32 (N,)."""
    encoded = block["split"].dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def in_splits(block: pa.RecordBatch, beginnings: tuple[str, ...]) -> np.ndarray:
    """Which captions are in splits with one of some beginnings, bool (N,)."""
    names, numbers_N = splits_of(block)
    return np.array([name.startswith(beginnings) for name in names], bool)[numbers_N]
