"""The captions of a folder that is being built, as raw columns, with the hashes of their texts.

Shapes: N captions.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mclip_kit.data.columns import ROWS
from mclip_kit.data.row_files import ColumnWriter, open_folder

HELD = 2**13  # captions that are written at once
TYPES = {"image": "<i4", "language": "<u2", "split": "<u2", "size": "<i4", "text": "u1", "hash": "<u8"}
NONE = np.empty(0, "<u8")


class CaptionRows:
    """Writes captions as a context; after it, gives them as arrays, memory-mapped.

    Args:
        folder: the columns go into a folder in it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "captions.part"
        self._path.mkdir(parents=True, exist_ok=True)
        self._writer = ColumnWriter(self._path, {})
        self._labels: dict[str, int] = {}
        self._held: list[list[Any]] = [[], [], [], []]
        self._hashes: list[np.ndarray] = []
        self._dropped_N: np.ndarray | None = None

    def __enter__(self) -> "CaptionRows":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._writer:
            if kind is None:
                self._flush()

    def write(self, columns: Sequence[Sequence[Any]], hashes_N: np.ndarray) -> None:
        """Append captions: numbers of pictures, languages, splits and texts; and hashes of the texts."""
        for held, column in zip(self._held, columns, strict=True):
            held.extend(column)
        self._hashes.append(hashes_N)
        if len(self._held[0]) >= HELD:
            self._flush()

    def _flush(self) -> None:
        images, languages, splits, texts = self._held
        labels = [self._numbers(names) for names in (languages, splits)]
        encoded: list[Any] = texts if "".join(texts).isascii() else [text.encode() for text in texts]
        content = "".join(texts).encode() if encoded is texts else b"".join(encoded)
        text, hashes_N = np.frombuffer(content, np.uint8), np.concatenate([NONE, *self._hashes])
        columns = (images, *labels, [*map(len, encoded)], text, hashes_N)
        for (name, kind), column in zip(TYPES.items(), columns, strict=True):
            self._writer.add(name, np.asarray(column, kind))
        self._held, self._hashes = [[], [], [], []], []

    def _numbers(self, names: list[str]) -> list[int]:
        """The numbers of languages or splits; new ones get the next."""
        for name in dict.fromkeys(names):
            self._labels.setdefault(name, len(self._labels))
        return [*map(self._labels.__getitem__, names)]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return open_folder(self._path, verify=False)[1]

    @property
    def images_N(self) -> np.ndarray:
        """The numbers of their pictures, int32."""
        return self._columns["image"]

    @property
    def hashes_N(self) -> np.ndarray:
        """The hashes of their texts, uint64."""
        return self._columns["hash"]

    def in_splits(self, beginnings: str | tuple[str, ...]) -> np.ndarray:
        """Which captions are in splits with one of some beginnings, bool (N,); those that are dropped are in none."""
        found_N = np.array([name.startswith(beginnings) for name in self._labels], bool)[self._columns["split"]]
        return found_N if self._dropped_N is None else found_N & ~self._dropped_N

    def drop(self, dropped_N: np.ndarray) -> None:
        """Leave out captions, bool (N,)."""
        self._dropped_N = dropped_N if self._dropped_N is None else self._dropped_N | dropped_N

    def chosen(self, chosen_N: np.ndarray) -> Iterator[tuple[int, str, str]]:
        """The picture, the language and the split of some captions, bool (N,)."""
        names = list(self._labels)
        columns = (self._columns[name][chosen_N].tolist() for name in ("image", "language", "split"))
        for image, language, split in zip(*columns, strict=True):
            yield image, names[language], names[split]

    def split_hashes(self) -> Iterator[tuple[str, np.ndarray]]:
        """The hashes of the texts of each split, some at a time and in their order."""
        names = list(self._labels)
        for rows, kept_N in self._blocks():
            splits_N = self._columns["split"][rows][kept_N]
            for number in np.unique(splits_N).tolist():
                yield names[number], self.hashes_N[rows][kept_N][splits_N == number]

    def _blocks(self) -> Iterator[tuple[slice, Any]]:
        """Where ROWS captions at a time are, and which of those are kept."""
        if self._dropped_N is None:
            starts = range(0, len(self.images_N), ROWS)
            yield from ((slice(start, start + ROWS), slice(None)) for start in starts)
            return
        rows = np.flatnonzero(~self._dropped_N)
        for start in range(0, len(rows), ROWS):
            own = rows[start : start + ROWS]
            where = slice(int(own[0]), int(own[-1]) + 1)
            yield where, ~self._dropped_N[where]

    def columns(self) -> Iterator[dict[str, Any]]:
        """The captions that are kept as Arrow columns, ROWS at a time."""
        names, position, before = [name.encode() for name in self._labels], 0, 0
        for rows, kept_N in self._blocks():
            position += int(self._columns["size"][before : rows.start].sum(dtype=np.int64))
            sizes_N = self._columns["size"][rows]
            text = self._columns["text"][position : position + int(sizes_N.sum(dtype=np.int64))]
            position, before = position + len(text), rows.stop
            if not isinstance(kept_N, slice) and not kept_N.all():
                text, sizes_N = text[np.repeat(kept_N, sizes_N)], sizes_N[kept_N]
            yield {
                "image": pa.Array.from_buffers(
                    pa.int32(), len(sizes_N), [None, pa.py_buffer(self.images_N[rows][kept_N])]
                ),
                "language": _labels(names, self._columns["language"][rows][kept_N]),
                "split": _labels(names, self._columns["split"][rows][kept_N]),
                "caption": _strings(sizes_N, text),
            }

    def remove(self) -> None:
        """Remove the columns from the disk."""
        shutil.rmtree(self._path)


def _numbers(numbers_N: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(numbers_N), [None, pa.py_buffer(numbers_N)])


def _labels(names: list[bytes], numbers_N: np.ndarray) -> pa.Array:
    sizes_N = np.array([len(name) for name in names], np.int32)[numbers_N]
    return _strings(sizes_N, b"".join(map(names.__getitem__, numbers_N.tolist())))


def _strings(sizes_N: np.ndarray, text: bytes | np.ndarray) -> pa.Array:
    """Strings of so many bytes each; `pyarrow.array` would import pandas where it is installed, which takes long."""
    ends_N = np.concatenate(([0], np.cumsum(sizes_N))).astype(np.int32)
    return pa.StringArray.from_buffers(len(sizes_N), pa.py_buffer(ends_N), pa.py_buffer(text))
