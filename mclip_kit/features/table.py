"""A table: features of one frozen tower, one row per distinct input, in shards on disk.

TABLE/table.json       tower, weights, preprocessing and precision of these features
TABLE/NAME/            its shards, see shards.py
TABLE/index-NAMES.bin  where each key is, see index.py; written again when there are other shards
TABLE/.NAME.lock       while a process fills or removes a shard, see locks.locked; empty
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_kit.errors import DataError
from mclip_kit.features.index import BITS, LOCAL, find, index_is_sound, index_path, open_index
from mclip_kit.features.job import ExtractionJob, first_of_each, load_batches, split_by_items, split_by_tokens
from mclip_kit.features.shard_writer import ShardWriter, claim_shard, remove_damaged
from mclip_kit.features.shards import ItemFormat, Shard, is_sound, shard_name
from mclip_kit.files import readable
from mclip_kit.progress import is_quiet, tqdm

SHARD_BYTES = 256 << 20
FULL = 0.95  # part of the free disk that features may take
REMOVED = "features were removed during the run; run again, or use --resume"
PATIENCE = 0.2  # seconds between two looks at shards that other processes fill


class NoRoom(DataError):
    """The disk has no room for the features."""


class Table:
    """Features by content key.

    Args:
        folder: the table's.
        item_format: width and stored type of its items.
        name: for progress bars and messages.
        shard_bytes: size of a full shard.
        log: takes a line before rows are computed, and a line for each damaged file.
    """

    def __init__(
        self,
        folder: Path,
        item_format: ItemFormat,
        name: str,
        shard_bytes: int = SHARD_BYTES,
        log: Callable[[str], None] = tqdm.write,
    ) -> None:
        self.folder, self.item_format, self.name = folder, item_format, name
        self.shard_bytes, self._log = shard_bytes, log
        folder.mkdir(parents=True, exist_ok=True)
        self._checked: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._open()

    def unreadable(self, rows: np.ndarray) -> np.ndarray:
        """Which rows have no features because their input could not be read; bool (N,)."""
        bad_N, shard_N = np.zeros(len(rows), bool), rows >> BITS
        with self._while_it_is_there():
            for number in np.unique(shard_N):
                mine = shard_N == number
                bad_N[mine] = self._shard(number).unreadable_N[rows[mine] & LOCAL]
        return bad_N

    @contextmanager
    def _while_it_is_there(self) -> Iterator[None]:
        """DataError if `cache prune`, or a person, removes what the block reads."""
        try:
            yield
        except (FileNotFoundError, FileExistsError) as error:  # the second: it went while it was made
            named = Path(os.fsdecode(error.filename or "")).absolute()
            if self.folder.absolute() not in (named, *named.parents):
                raise
            raise DataError(f"{self.folder}: {REMOVED}") from None

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            raise DataError(f"{self.folder}: {REMOVED}")
        return self._shards[number]

    def _open(self) -> None:
        """Read the descriptions of all whole shards, and nothing else of them.

        A shard keeps its number while the table is open, so rows that were found before stay valid.
        """
        with self._while_it_is_there():
            self._open_all()

    def _open_all(self) -> None:
        shards: list[Shard] = []
        for folder in shard_folders(self.folder):
            try:
                shards.append(Shard(folder, self.item_format))
            except DataError:
                self._remove_damaged(folder)
        for shard in shards:
            self._numbers.setdefault(shard.folder.name, len(self._numbers))
        self._order = np.array([self._numbers[shard.folder.name] for shard in shards], np.int64)
        self._shards = {self._numbers[shard.folder.name]: shard for shard in shards}
        self._index = open_index(self.folder, shards)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards.values())

    def find(self, keys_N2: np.ndarray) -> np.ndarray:
        """The row of each key, int64 (N,): its shard's number and its place in that shard; -1 if it has no row."""
        row_N = find(self._index, keys_N2)
        found = row_N >= 0
        row_N[found] = (self._order[row_N[found] >> BITS] << BITS) + (row_N[found] & LOCAL)
        return row_N

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Items of each row, int64 (N,)."""
        return np.diff(self._items(rows), axis=1)[:, 0]

    def take(self, rows: np.ndarray) -> Tensor:
        """The items of some rows, one row after the other, float32 (items, width)."""
        shard_N = rows >> BITS
        bounds_N2 = self._items(rows)
        lengths_N = bounds_N2[:, 1] - bounds_N2[:, 0]
        starts_N = np.concatenate(([0], np.cumsum(lengths_N)))
        out = np.empty((int(starts_N[-1]), self.item_format.width), np.float32)
        for number in np.unique(shard_N):
            mine = np.flatnonzero(shard_N == number)
            with self._while_it_is_there():
                items_ND = self._shard(number).take(bounds_N2[mine, 0], lengths_N[mine])
            out[_spans(starts_N[mine], lengths_N[mine])] = items_ND
        return torch.from_numpy(out)

    def _items(self, rows: np.ndarray) -> np.ndarray:
        """Where each row's items start and end in its shard, int64 (N, 2); the end is exclusive."""
        shard_N = rows >> BITS
        bounds_N2 = np.empty((len(rows), 2), np.int64)
        for number in np.unique(shard_N):
            mine = shard_N == number
            local = rows[mine] & LOCAL
            with self._while_it_is_there():
                offsets_N = self._shard(number).offsets_N
            bounds_N2[mine] = np.stack([offsets_N[local], offsets_N[local + 1]], 1)
        return bounds_N2

    def fill(self, keys_N2: np.ndarray, job: ExtractionJob, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Compute what is missing and return the row of each key, int64 (N,).

        Shards that have some of the keys are verified first, once per table object; damaged ones are computed again.

        Args:
            keys_N2: the content key of each input, uint64 (N, 2).
            job: computes the features of inputs, by their position in `keys_N2`.
            rank: this process's number; each process starts with other shards.
            world_size: processes that fill the table together.
        Raises:
            NoRoom: the disk has no room for what is missing; nothing was computed.
            DataError: an output cannot be stored.
        """
        with self._while_it_is_there():
            return self._fill(keys_N2, job, rank, world_size)

    def _fill(self, keys_N2: np.ndarray, job: ExtractionJob, rank: int, world_size: int) -> np.ndarray:
        self._verify(keys_N2, quiet=rank > 0)
        missing = first_of_each(keys_N2, np.flatnonzero(self.find(keys_N2) < 0))
        if len(missing):
            self._check_room(missing, job)
            plan = list(self._plan(keys_N2, missing, job, world_size))
            first = rank * len(plan) // world_size
            self._compute(plan[first:] + plan[:first], keys_N2, job, quiet=rank > 0)
            self._open()
            self._checked |= {shard.folder.name for shard in self._shards.values()} & {name for name, _ in plan}
        rows = self.find(keys_N2)
        if (rows < 0).any():
            raise DataError(f"{self.folder}: {REMOVED}")
        return rows

    def _check_room(self, missing: np.ndarray, job: ExtractionJob) -> None:
        items = int(job.sizes_N[missing].sum()) if job.ragged and job.sizes_N is not None else len(missing)
        size, free = items * self.item_format.item_bytes, shutil.disk_usage(self.folder).free
        if size > FULL * free:
            raise NoRoom(f"{self.name} would take {readable(size)}, but {self.folder} has {readable(free)} free")
        if not is_quiet():
            self._log(f"{self.name}: {len(missing):,} rows to compute, {readable(size)} of {readable(free)} free")

    def _verify(self, keys_N2: np.ndarray, quiet: bool) -> None:
        self._verify_index()
        rows = self.find(keys_N2)
        needed = [self._shards[int(number)] for number in np.unique(rows[rows >= 0] >> BITS)]
        unchecked = [shard for shard in needed if shard.folder.name not in self._checked]
        large = sum(shard.items for shard in unchecked) * self.item_format.item_bytes > self.shard_bytes
        damaged = []
        for shard in tqdm(unchecked, f"{self.name}: verify", unit="shard", leave=False, disable=quiet or not large):
            if is_sound(shard.folder, self.item_format):
                self._checked.add(shard.folder.name)
            else:
                damaged.append(shard.folder)
                self._remove_damaged(shard.folder)
        if damaged:
            self._open()

    def _verify_index(self) -> None:
        path = index_path(self.folder, [shard.folder for shard in self._shards.values()])
        if path.name in self._checked or not self._shards:
            return
        if not index_is_sound(path):
            if path.is_file():  # otherwise another process has written a newer one
                self._log(f"{path}: damaged; it is written again")
                path.unlink(missing_ok=True)
            self._open()
        self._checked.add(path.name)

    def _remove_damaged(self, folder: Path) -> None:
        self._log(f"{folder}: damaged; it is removed and computed again")
        remove_damaged(folder, self.item_format)

    def _plan(
        self, keys_N2: np.ndarray, missing: np.ndarray, job: ExtractionJob, world_size: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Names of shards and the positions of their rows; the same for every process that asks for the same keys."""
        sizes_N = np.ones(len(keys_N2), np.int64) if job.sizes_N is None else np.asarray(job.sizes_N, np.int64)
        items_N = sizes_N if job.ragged else np.ones_like(sizes_N)
        order = missing[np.argsort(sizes_N[missing], kind="stable")]
        whole = int(items_N.sum())
        room = max(1, min(self.shard_bytes // self.item_format.item_bytes, -(-whole // world_size)))
        for rows in split_by_items(order, np.cumsum(items_N[order]), room):
            yield shard_name(keys_N2[rows]), rows

    def _compute(
        self, plan: list[tuple[str, np.ndarray]], keys_N2: np.ndarray, job: ExtractionJob, quiet: bool
    ) -> None:
        sizes_N = job.sizes_N if job.sizes_N is not None else np.ones(len(keys_N2), np.int64)
        total = sum(int(sizes_N[rows].sum()) for _, rows in plan)
        unit = "row" if job.sizes_N is None else "token"
        quiet = quiet or total < 256
        with tqdm(total=total, desc=self.name, unit=unit, leave=False, dynamic_ncols=True, disable=quiet) as bar:
            while plan:
                left = [shard for shard in plan if not self._fill_one(*shard, keys_N2, job, sizes_N, bar)]
                if len(left) == len(plan):
                    time.sleep(PATIENCE)  # other processes fill all of them
                plan = left

    def _fill_one(
        self, name: str, rows: np.ndarray, keys_N2: np.ndarray, job: ExtractionJob, sizes_N: np.ndarray, bar: Any
    ) -> bool:
        """Fill a shard unless another process fills it; returns whether it is whole now."""
        folder = self.folder / name
        with claim_shard(folder) as mine:
            if mine:
                items_N = sizes_N[rows] if job.ragged else np.ones(len(rows), np.int64)
                offsets_N = np.concatenate(([0], np.cumsum(items_N)))
                writer = ShardWriter(folder, self.item_format, keys_N2[rows], offsets_N)
                try:
                    bar.update(int(sizes_N[rows[: writer.rows]].sum()))
                    left = rows[writer.rows :]
                    todo = list(split_by_tokens(left, sizes_N[left], job.batch_items))
                    for batch, (inputs, unreadable) in zip(todo, load_batches(todo, job), strict=True):
                        values_ND = job.run(inputs).float().cpu().numpy()
                        values_ND[unreadable] = 0
                        writer.append(len(batch), values_ND, unreadable)
                        bar.update(int(sizes_N[batch].sum()))
                    writer.finish()
                finally:
                    writer.close()
        return folder.exists()


def shard_folders(folder: Path) -> list[Path]:
    """The folders of a table's whole shards."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != ".part")


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers start .. start + length - 1 of each pair, one pair after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
