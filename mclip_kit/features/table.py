"""A table: features of one frozen tower, a row per distinct input, in shards on disk.

TABLE/table.json       which tower, weights, preprocessing and precision these features are of
TABLE/NAME/            its shards, see shards.py
TABLE/index-NAMES.bin  where each key is, see index.py; made anew whenever the shards are others
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mclip_kit.errors import DataError
from mclip_kit.features.index import BITS, LOCAL, find, index_is_sound, index_path, open_index
from mclip_kit.features.job import ExtractionJob, batches, cut, first_of_each, loaded
from mclip_kit.features.shards import Layout, Part, Shard, claimed, reopen, shard_name
from mclip_kit.files import readable

SHARD_BYTES = 256 << 20
FULL = 0.95  # of the free disk that features may take
PATIENCE = 0.2  # seconds between looks at what another process is filling


class NoRoom(DataError):
    """Features that the disk has no room for."""


class Table:
    """Features by content key.

    Args:
        folder: the table's.
        layout: of its items.
        name: for progress bars and messages.
        shard_bytes: how large a shard becomes.
        log: takes a line about what is to be computed, and about what is damaged.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        name: str,
        shard_bytes: int = SHARD_BYTES,
        log: Callable[[str], None] = tqdm.write,
    ) -> None:
        self.folder, self.layout, self.name, self.shard_bytes, self._log = folder, layout, name, shard_bytes, log
        folder.mkdir(parents=True, exist_ok=True)
        self._checked: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._open()

    def unreadable(self, rows: np.ndarray) -> np.ndarray:
        """Which rows have no features, because their input could not be read; bool (N,)."""
        bad_N, shard_N = np.zeros(len(rows), bool), rows >> BITS
        for number in np.unique(shard_N):
            mine = shard_N == number
            bad_N[mine] = self._shard(number).unreadable_N[rows[mine] & LOCAL]
        return bad_N

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            raise DataError(f"{self.folder}: features were removed or found damaged in use; run again, or --resume")
        return self._shards[number]

    def _open(self) -> None:
        """Look at the whole shards that are there; nothing but their descriptions is read.

        A shard keeps its number for as long as the table is open, so rows that were found stay what they are.
        """
        shards: list[Shard] = []
        for folder in sorted(path for path in self.folder.iterdir() if path.is_dir() and path.suffix != ".part"):
            try:
                shards.append(Shard(folder, self.layout))
            except DataError:
                self._log_damaged(folder)
                reopen(folder)
        for shard in shards:
            self._numbers.setdefault(shard.folder.name, len(self._numbers))
        self._order = np.array([self._numbers[shard.folder.name] for shard in shards], np.int64)
        self._shards = {self._numbers[shard.folder.name]: shard for shard in shards}
        self._index = open_index(self.folder, shards)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards.values())

    def find(self, keys_N2: np.ndarray) -> np.ndarray:
        """The row of each key, int64 (N,): its shard's number and its place in that shard; -1 where there is none."""
        row_N = find(self._index, keys_N2)
        there = row_N >= 0
        row_N[there] = (self._order[row_N[there] >> BITS] << BITS) + (row_N[there] & LOCAL)
        return row_N

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Items of each row, int64 (N,)."""
        return np.diff(self._items(rows), axis=1)[:, 0]

    def take(self, rows: np.ndarray) -> Tensor:
        """The items of some rows, one row's after the other, float32 (items, width)."""
        shard_N = rows >> BITS
        bounds_N2 = self._items(rows)
        lengths_N = bounds_N2[:, 1] - bounds_N2[:, 0]
        starts_N = np.concatenate(([0], np.cumsum(lengths_N)))
        out = np.empty((int(starts_N[-1]), self.layout.width), np.float32)
        for number in np.unique(shard_N):
            mine = np.flatnonzero(shard_N == number)
            items_ND = self._shard(number).take(bounds_N2[mine, 0], lengths_N[mine])
            out[_spans(starts_N[mine], lengths_N[mine])] = items_ND
        return torch.from_numpy(out)

    def _items(self, rows: np.ndarray) -> np.ndarray:
        """First item and the one behind the last of each row in its shard, int64 (N, 2)."""
        shard_N = rows >> BITS
        bounds_N2 = np.empty((len(rows), 2), np.int64)
        for number in np.unique(shard_N):
            mine = shard_N == number
            local = rows[mine] & LOCAL
            offsets_N = self._shard(number).offsets_N
            bounds_N2[mine] = np.stack([offsets_N[local], offsets_N[local + 1]], 1)
        return bounds_N2

    def fill(self, keys_N2: np.ndarray, work: ExtractionJob, share: int = 0, shares: int = 1) -> np.ndarray:
        """Compute what is missing and return the row of each key, int64 (N,).

        Shards in which the keys were found are verified first, once a process; what is damaged is computed anew.

        Args:
            share, shares: this process's number, and how many fill together; they divide the shards among them.
        Raises:
            NoRoom: the disk has no room for what is missing; nothing was computed.
            DataError: an output cannot be stored.
        """
        self._verify(keys_N2, quiet=share > 0)
        missing = first_of_each(keys_N2, np.flatnonzero(self.find(keys_N2) < 0))
        if len(missing):
            self._check_room(missing, work)
            plan = list(self._plan(keys_N2, missing, work, shares))
            first = share * len(plan) // shares
            self._compute(plan[first:] + plan[:first], keys_N2, work, quiet=share > 0)
            self._open()
            self._checked |= {shard.folder.name for shard in self._shards.values()} & {name for name, _ in plan}
        return self.find(keys_N2)

    def _check_room(self, missing: np.ndarray, work: ExtractionJob) -> None:
        items = int(work.sizes_N[missing].sum()) if work.ragged and work.sizes_N is not None else len(missing)
        size, free = items * self.layout.item_bytes, shutil.disk_usage(self.folder).free
        if size > FULL * free:
            raise NoRoom(f"{self.name} would take {readable(size)}, and {self.folder} has {readable(free)} free")
        self._log(f"{self.name}: {len(missing):,} rows to compute, {readable(size)} of {readable(free)} free")

    def _verify(self, keys_N2: np.ndarray, quiet: bool) -> None:
        self._verify_index()
        rows = self.find(keys_N2)
        needed = [self._shards[int(number)] for number in np.unique(rows[rows >= 0] >> BITS)]
        unchecked = [shard for shard in needed if shard.folder.name not in self._checked]
        large = sum(shard.items for shard in unchecked) * self.layout.item_bytes > self.shard_bytes
        damaged = []
        for shard in tqdm(unchecked, f"{self.name}: verify", unit="shard", leave=False, disable=quiet or not large):
            if shard.is_sound():
                self._checked.add(shard.folder.name)
            else:
                damaged.append(shard.folder)
                self._log_damaged(shard.folder)
                reopen(shard.folder)
        if damaged:
            self._open()

    def _verify_index(self) -> None:
        path = index_path(self.folder, [shard.folder for shard in self._shards.values()])
        if path.name in self._checked or not self._shards:
            return
        if not index_is_sound(path):
            if path.is_file():  # else another process has made a newer one
                self._log(f"{path}: damaged; it is made anew")
                path.unlink(missing_ok=True)
            self._open()
        self._checked.add(path.name)

    def _log_damaged(self, folder: Path) -> None:
        self._log(f"{folder}: damaged; what is wrong in it is computed anew")

    def _plan(
        self, keys_N2: np.ndarray, missing: np.ndarray, work: ExtractionJob, shares: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Names of shards, and the positions of their rows: the same for whoever wants the same."""
        sizes_N = np.ones(len(keys_N2), np.int64) if work.sizes_N is None else np.asarray(work.sizes_N, np.int64)
        items_N = sizes_N if work.ragged else np.ones_like(sizes_N)
        order = missing[np.argsort(sizes_N[missing], kind="stable")]
        whole = int(items_N.sum())
        room = max(1, min(self.shard_bytes // self.layout.item_bytes, -(-whole // shares)))
        for rows in cut(order, np.cumsum(items_N[order]), room):
            yield shard_name(keys_N2[rows]), rows

    def _compute(
        self, plan: list[tuple[str, np.ndarray]], keys_N2: np.ndarray, work: ExtractionJob, quiet: bool
    ) -> None:
        sizes_N = work.sizes_N if work.sizes_N is not None else np.ones(len(keys_N2), np.int64)
        total = sum(int(sizes_N[rows].sum()) for _, rows in plan)
        unit = "row" if work.sizes_N is None else "token"
        quiet = quiet or total < 256
        with tqdm(total=total, desc=self.name, unit=unit, leave=False, dynamic_ncols=True, disable=quiet) as bar:
            while plan:
                left = [shard for shard in plan if not self._fill_one(*shard, keys_N2, work, sizes_N, bar)]
                if len(left) == len(plan):
                    time.sleep(PATIENCE)  # another process is at all of them
                plan = left

    def _fill_one(
        self, name: str, rows: np.ndarray, keys_N2: np.ndarray, work: ExtractionJob, sizes_N: np.ndarray, bar: Any
    ) -> bool:
        """Fill a shard unless another process is at it; whether it is whole now."""
        folder = self.folder / name
        with claimed(folder) as mine:
            if mine:
                items_N = sizes_N[rows] if work.ragged else np.ones(len(rows), np.int64)
                part = Part(folder, self.layout, keys_N2[rows], np.concatenate(([0], np.cumsum(items_N))))
                try:
                    bar.update(int(sizes_N[rows[: part.rows]].sum()))
                    left = rows[part.rows :]
                    todo = list(batches(left, sizes_N[left], work.batch_items))
                    for batch, (inputs, unreadable) in zip(todo, loaded(todo, work), strict=True):
                        values_ND = work.run(inputs).float().cpu().numpy()
                        values_ND[unreadable] = 0
                        part.append(len(batch), values_ND, unreadable)
                        bar.update(int(sizes_N[batch].sum()))
                    part.finish()
                finally:
                    part.close()
        return folder.exists()


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers start .. start + length - 1 of each pair, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
