"""Where the features of some inputs are in a table: found once, kept in a file, and mapped by every process and run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mclip_kit.data.row_files import ColumnWriter, discard, once, open_columns
from mclip_kit.errors import DataError, DiskError
from mclip_kit.features.table import Table


class _Incomplete(Exception):
    """The table lacks some of the inputs."""


def find_once(table: Table, keys: Callable[[], np.ndarray], kept: Path) -> np.ndarray | None:
    """The table's row of each of N inputs, int64 (N,), memory-mapped.

    Args:
        keys: gives the keys of the inputs, uint64 (N, 2); called if nothing is kept for these inputs.
        kept: a folder that belongs to these inputs alone.
    Returns:
        None if the table lacks some of them, if shards that have them are damaged, or if nothing can be kept.
    """
    state = table.state()
    if state is None:
        return None
    folder = kept / f"{table.folder.name}-{state}"

    def write(part: Path) -> None:
        row_N = table.find(keys())
        if (row_N < 0).any():
            raise _Incomplete
        for old in kept.glob(f"{table.folder.name}-*"):
            discard(old)
        with ColumnWriter(part, {}) as writer:
            writer.add("row", row_N)

    try:
        row_N = open_columns(once(folder, write))[1]["row"]
    except (_Incomplete, DiskError):
        return None
    except DataError:
        discard(folder)
        return None
    return row_N if table.verify(row_N) else None
