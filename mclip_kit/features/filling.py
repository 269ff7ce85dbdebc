"""Fill the shards of a table, several processes together."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.errors import DataError
from mclip_kit.features.copies import is_whole
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.job import ExtractionJob, items_of, load_batches, sizes_of, split_by_tokens
from mclip_kit.features.shard_writer import ShardWriter, claim_shard
from mclip_kit.files import readable
from mclip_kit.progress import tqdm

FULL = 0.95  # part of the free disk that features may take
PATIENCE = 0.2  # seconds between two looks at shards that other processes fill
Plan = list[tuple[str, np.ndarray]]
"""Names of shards, and the positions of their rows."""


def fill_shards(
    folder: Path, item_format: ItemFormat, plan: Plan, keys_N2: np.ndarray, job: ExtractionJob, name: str, quiet: bool
) -> None:
    """Fill the shards of a plan; return when all of them are whole, whoever has filled them.

    Args:
        folder: the table's.
        plan: the shards, in the order in which this process starts them.
        keys_N2: the content key of each input, uint64 (N, 2).
        name: for the progress bar, and
        quiet: whether there is none.
    """
    total = sum(int(sizes_of(job, rows).sum()) for _, rows in plan)
    unit = "row" if job.sizes_N is None else "token"
    quiet = quiet or total < 256
    with tqdm(total=total, desc=name, unit=unit, leave=False, dynamic_ncols=True, disable=quiet) as bar:
        while plan:
            left = [part for part in plan if not _fill(folder / part[0], item_format, part[1], keys_N2, job, bar)]
            if len(left) == len(plan):
                time.sleep(PATIENCE)  # other processes fill all of them
            plan = left


def _fill(
    folder: Path, item_format: ItemFormat, rows: np.ndarray, keys_N2: np.ndarray, job: ExtractionJob, bar: Any
) -> bool:
    """Fill a shard unless another process fills it; returns whether it is whole now."""
    with claim_shard(folder) as mine:
        if mine:
            offsets_N = np.concatenate(([0], np.cumsum(items_of(job, rows))))
            writer = ShardWriter(folder, item_format, keys_N2[rows], offsets_N)
            try:
                _write(writer, rows, job, bar)
                writer.finish()
            finally:
                writer.close()
    return is_whole(folder)


def _write(writer: ShardWriter, rows: np.ndarray, job: ExtractionJob, bar: Any) -> None:
    """Compute the rows that a shard does not have yet."""
    bar.update(int(sizes_of(job, rows[: writer.rows]).sum()))
    left = rows[writer.rows :]
    todo = list(split_by_tokens(left, sizes_of(job, left), job.batch_items))
    for batch, (inputs, unreadable) in zip(todo, load_batches(todo, job), strict=True):
        values_ND = job.run(inputs).float().cpu().numpy()
        values_ND[unreadable] = 0
        writer.append(len(batch), values_ND, unreadable)
        bar.update(int(sizes_of(job, batch).sum()))


class NoRoom(DataError):
    """The disk has no room for the features."""


def check_room(folder: Path, name: str, size: int) -> int:
    """Free bytes of a folder's disk.

    Raises:
        NoRoom: features of a size would take nearly all of them, or more.
    """
    free = shutil.disk_usage(folder).free
    if size > FULL * free:
        raise NoRoom(f"{name} would take {readable(size)}, but {folder} has {readable(free)} free")
    return free
