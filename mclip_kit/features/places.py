"""Where the features of some inputs are in a table: found once, kept in a file, and mapped by every process and run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mclip_kit.data.row_files import ColumnWriter, discard, once, open_folder
from mclip_kit.data.sequences import blocks_of
from mclip_kit.errors import DataError, DiskError
from mclip_kit.features.table import Table


class _Incomplete(Exception):
    """The table lacks some of the inputs."""


def find_once(
    table: Table, keys: Callable[[], np.ndarray], kept: Path, key_of_N: np.ndarray | None = None
) -> np.ndarray | None:
    """The table's row of each of N inputs, int64 (N,), memory-mapped.

    Args:
        keys: gives the keys of the inputs, uint64 (N, 2); called if nothing is kept for these inputs.
        kept: a folder that belongs to these inputs alone.
        key_of_N: which of the keys each input has, int (N,); None: each has its own.
    Returns:
        None if the table lacks some of them, if shards that have them are damaged, or if nothing can be kept.
    """
    state = table.state()
    if state is None:
        return None
    folder = kept / f"{table.folder.name}-{state}"

    def write(part: Path) -> None:
        row_K = table.find(keys())
        with ColumnWriter(part, {}) as writer:
            for some in blocks_of(len(row_K if key_of_N is None else key_of_N)):
                row_B = row_K[some if key_of_N is None else key_of_N[some]]
                if (row_B < 0).any():
                    raise _Incomplete
                writer.add("row", row_B)
        for old in kept.glob(f"{table.folder.name}-*"):
            discard(old)

    try:
        row_N = open_folder(once(folder, write))[1]["row"]
    except (_Incomplete, DiskError):
        return None
    except DataError:
        discard(folder)
        return None
    return row_N if table.verify(row_N) else None
