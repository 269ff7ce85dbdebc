"""Columns on disk: Arrow files that are memory-mapped, so that millions of rows open at once and take no memory.

Shapes: N rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from mclip_kit.data.sequences import blocks_of
from mclip_kit.errors import first_line
from mclip_kit.files import write_whole

ROWS = 2**17  # of a block of a file


class Labels(Sequence[str]):
    """A column with few different values, as numbers of its names.

    Attributes:
        codes: int (N,), the number of each row's name.
        names: the different values.

    >>> languages = Labels.of(["de", "en", "de"])
    >>> languages[1], languages[[0, 1]].tolist(), languages.isin(["de"]).tolist()
    ('en', ['de', 'en'], [True, False, True])
    """

    def __init__(self, codes: np.ndarray, names: Sequence[str]) -> None:
        self.codes, self.names = codes, list(names)

    @classmethod
    def of(cls, values: "pa.ChunkedArray | Sequence[str]") -> "Labels":
        """The labels of some values."""
        column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values, pa.string())])
        number_of: dict[str, int] = {}
        codes = [np.empty(0, np.int8)]
        for part in blocks_of(len(column), ROWS):
            for chunk in column.slice(part.start, part.stop - part.start).chunks:
                found = chunk.dictionary_encode()
                numbers = [number_of.setdefault(name, len(number_of)) for name in found.dictionary.to_pylist()]
                dtype = np.min_scalar_type(-max(1, len(number_of)))
                codes.append(np.array(numbers, dtype)[np.from_dlpack(found.indices)])
        return cls(np.concatenate(codes), list(number_of))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: Any) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        found = self.codes[index]
        return np.array(self.names, object)[found] if isinstance(found, np.ndarray) else self.names[int(found)]

    def __eq__(self, name: object) -> np.ndarray:  # type: ignore[override]
        """Which rows have a name, bool (N,)."""
        return self.isin([str(name)])

    __hash__ = None  # type: ignore[assignment]

    def tolist(self) -> list[str]:
        """All values."""
        return [self.names[number] for number in self.codes.tolist()]

    def take(self, rows: np.ndarray | slice) -> "Labels":
        """The labels of some rows, or of those where a mask is true."""
        return Labels(self.codes[rows], self.names)

    def isin(self, names: Iterable[str]) -> np.ndarray:
        """Which rows have one of some names, bool (N,)."""
        wanted, found_N = {*names}, np.zeros(len(self), bool)
        has = np.array([name in wanted for name in self.names], bool)
        for part in blocks_of(len(self)) if has.any() else ():
            found_N[part] = has[self.codes[part]]
        return found_N

    def present(self, rows: Any = slice(None)) -> list[str]:
        """The names that occur, sorted."""
        codes = self.codes[rows]
        found = [np.unique(codes[part]) for part in blocks_of(len(codes), ROWS)]
        return sorted(self.names[number] for number in {*np.concatenate([codes[:0], *found]).tolist()})


class Strings(Sequence[str]):
    """A column of texts, which are read when they are asked for.

    >>> texts = Strings.of(["a dog", "ein Hund"])
    >>> texts[1], texts[np.array([1, 0])].tolist()
    ('ein Hund', ['ein Hund', 'a dog'])
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._stops = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)

    @classmethod
    def of(cls, values: Sequence[str]) -> "Strings":
        """A column of texts in memory."""
        return cls(pa.chunked_array([pa.array(values, pa.large_string())]))

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: Any) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (int, np.integer)):
            return self._one(int(index))
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        rows = np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        out = np.empty(len(rows), object)
        for places, found in self._found(rows):
            out[places] = found.to_pylist()
        return out

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks:
            for start in range(0, len(chunk), ROWS):
                yield from chunk.slice(start, ROWS).to_pylist()

    def tolist(self) -> list[str]:
        """All texts."""
        return list(self)

    def take(self, rows: np.ndarray) -> "Strings":
        """The texts of some rows, or of those where a mask is true, in memory but not as Python objects."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if len(rows) and (np.diff(rows) < 0).any():
            return Strings.of(self[rows].tolist())
        return Strings(pa.chunked_array([found for _, found in self._found(rows)], pa.large_string()))

    def _one(self, index: int) -> str:
        index = index + len(self) if index < 0 else index
        number = int(np.searchsorted(self._stops, index, side="right"))
        if not 0 <= index < len(self):
            raise IndexError(index)
        return str(self._chunks[number][index - (int(self._stops[number - 1]) if number else 0)].as_py())

    def _found(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Array]]:
        """Places in `rows` and their texts, a chunk of the column at a time."""
        number_N = np.searchsorted(self._stops, rows, side="right")
        for number in np.unique(number_N):
            places = np.flatnonzero(number_N == number)
            start = self._stops[number - 1] if number else 0
            rows_of_chunk = np.ascontiguousarray(rows[places] - start, np.int64)
            own = pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(rows_of_chunk)])
            found = self._chunks[int(number)].take(own)
            yield places, found.cast(pa.large_string())


def write_columns(path: Path, schema: pa.Schema, blocks: Iterable[Mapping[str, Any]]) -> None:
    """Write an Arrow file, whole or not at all.

    Args:
        blocks: some rows each: column -> values.
    """
    with write_whole(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as out:
        for block in blocks:
            out.write_batch(
                pa.record_batch(
                    [pa.array(block[name], schema.field(name).type) for name in schema.names], schema=schema
                )
            )


def open_columns(path: Path, schema: pa.Schema, validate: bool = True) -> pa.Table:
    """The columns of an Arrow file, memory-mapped.

    Args:
        validate: whether all of it is read, so that damage cannot lead out of the file.
    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is damaged, or lacks a column.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if validate:
            table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"not an Arrow file: {first_line(error)}") from None
    lacking = [
        name
        for name in schema.names
        if name not in table.schema.names or table.schema.field(name).type != schema.field(name).type
    ]
    if lacking:
        raise ValueError(f"no column {lacking[0]} of type {schema.field(lacking[0]).type}")
    return table


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers of a column; they are not copied if the column is one block.

    `to_numpy` would import pandas where it is installed, which takes long; `pyarrow.array` would, too.
    """
    chunks = column.chunks if column.num_chunks == 1 else [pa.concat_arrays([pa.nulls(0, column.type), *column.chunks])]
    return np.from_dlpack(chunks[0])


def as_keys(column: pa.ChunkedArray) -> np.ndarray:
    """Values of 16 bytes as uint64 (N, 2)."""
    parts = [
        np.frombuffer(c.buffers()[1], "<u8").reshape(-1, 2)[c.offset : c.offset + len(c)]
        for c in column.chunks
        if len(c)
    ]
    return np.concatenate([np.empty((0, 2), "<u8"), *parts]) if len(parts) != 1 else parts[0]


KEY = pa.binary(16)
"""The type of a key: 128 bits of a hash."""


def key_column(keys_N2: np.ndarray) -> pa.Array:
    """Keys, uint64 (N, 2), as values of type `KEY`."""
    content = pa.py_buffer(np.ascontiguousarray(keys_N2, "<u8"))
    return pa.FixedSizeBinaryArray.from_buffers(KEY, len(keys_N2), [None, content])
