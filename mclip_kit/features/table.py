"""A table: features of one frozen tower, one row per distinct input, in shards on disk.

TABLE/table.json       tower, weights, preprocessing and precision of these features
TABLE/NAME/            its shards, see shards.py
TABLE/index-NAMES.bin  where each key is, see index.py
TABLE/.NAME.lock       while a process fills or removes a shard, see locks.locked; empty
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.arrays import numbers_from
from mclip_kit.disk import disk_errors
from mclip_kit.errors import DataError, DiskError
from mclip_kit.features.copies import bring_table, shard_folders, values_are_here
from mclip_kit.features.filling import check_room, fill_shards
from mclip_kit.features.index import BITS, LOCAL, find, in_key_order, index_is_sound, open_index, shard_numbers, slices
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.job import ExtractionJob, first_of_each, items_of, plan_shards
from mclip_kit.features.shard_writer import remove_damaged
from mclip_kit.features.shards import DamagedShard, Shard, is_sound
from mclip_kit.files import readable
from mclip_kit.progress import is_quiet, tqdm
from mclip_kit.storage import forget
from mclip_kit.urls import is_copy

SHARD_BYTES = 256 << 20
VERIFIED_FIRST = 1 << 30  # bytes of shards that are verified before any of their rows is read
AGAIN = "run again, or use --resume"
REMOVED = f"features were removed during the run; {AGAIN}"


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
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._checked: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._shards: dict[int, Shard] = {}
        self._open()

    def unreadable(self, rows: np.ndarray) -> np.ndarray:
        """Which rows have no features because their input could not be read; bool (N,)."""
        bad = [np.zeros(0, np.int64)]
        with self._while_it_is_there():
            for number in shard_numbers(rows):
                bad.append((number << BITS) + np.flatnonzero(self._shard(number).unreadable_N))
        known, bad_N = np.sort(np.concatenate(bad)), np.zeros(len(rows), bool)
        for part in slices(len(rows) if len(known) else 0):
            place_M = np.minimum(np.searchsorted(known, rows[part]), len(known) - 1)
            bad_N[part] = known[place_M] == rows[part]
        return bad_N

    @contextmanager
    def _while_it_is_there(self) -> Iterator[None]:
        """DataError if what the block reads is damaged, or if `cache prune`, or a person, removes it."""
        try:
            yield
        except DamagedShard as error:
            raise DataError(self._give_up(error)) from None
        except (FileNotFoundError, FileExistsError) as error:  # the second: it went while it was made
            path = Path(os.fsdecode(error.filename or "")).absolute()
            if self.folder.absolute() not in (path, *path.parents):
                raise
            raise DataError(f"{self.folder}: {REMOVED}") from None

    def _give_up(self, damage: DamagedShard) -> str:
        """Remove a shard that is found damaged during a run, which then ends with this message."""
        try:
            removed = remove_damaged(damage.folder, self.item_format) or not damage.folder.exists()
        except DiskError as error:
            return f"{damage}; it cannot be removed ({error}): copy the cache, or set cache.folder to another one"
        if removed:
            return f"{damage}; it is removed, and is computed again by the next run: {AGAIN}"
        return f"{damage}, as it was read; all of its checksums are right now: {AGAIN}"

    def _shard(self, number: int) -> Shard:
        """A shard to read from. One whose rows have no checksums is verified as a whole first."""
        if number not in self._shards:
            raise DataError(f"{self.folder}: {REMOVED}")
        shard = self._shards[number]
        if not shard.checks_rows and shard.folder.name not in self._checked:
            if not is_sound(shard.folder, self.item_format):
                raise DamagedShard(shard.folder, "a checksum is wrong")
            self._checked.add(shard.folder.name)
        return shard

    def _open(self) -> None:
        """Read the descriptions of all whole shards, and nothing else of them.

        A shard keeps its number while the table is open, so rows that were found before stay valid.
        """
        with self._while_it_is_there():
            bring_table(self.folder)
            while not self._try_to_open():
                pass

    def _try_to_open(self) -> bool:
        """False if keys that the index needs are damaged; their shard is then removed."""
        shards: list[Shard] = []
        known = {shard.folder.name: shard for shard in self._shards.values()}
        for folder in shard_folders(self.folder):
            before = known.get(folder.name)
            try:
                shards.append(before if before and before.is_current() else Shard(folder, self.item_format))
            except DamagedShard:
                self._remove_damaged(folder)
        try:
            parts = open_index(self.folder, shards)
        except DamagedShard as error:
            self._remove_damaged(error.folder)
            return False
        for shard in shards:
            self._numbers.setdefault(shard.folder.name, len(self._numbers))
        self._shards = {self._numbers[shard.folder.name]: shard for shard in shards}
        number_of = {shard.folder.name: self._numbers[shard.folder.name] for shard in shards}
        self._index = [(p, np.array([number_of.get(name, -1) for name in p.names], np.int64)) for p in parts]
        return True

    def folders(self, rows: np.ndarray) -> list[Path]:
        """Those of the shards that have some rows."""
        return [self._shards[number].folder for number in shard_numbers(rows) if number in self._shards]

    def state(self) -> str | None:
        """A hash of the shards that are there; None if rows of this object are not what they are in a new one."""
        names = sorted(shard.folder.name for shard in self._shards.values())
        same = names == sorted(self._numbers, key=self._numbers.__getitem__)
        return hashlib.blake2b(" ".join(names).encode(), digest_size=8).hexdigest() if same else None

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards.values())

    def find(self, keys_N2: np.ndarray) -> np.ndarray:
        """The row of each key, int64 (N,): its shard's number and its place in that shard; -1 if it has no row."""
        with self._while_it_is_there():
            self._verify_index()
        self._find(row_N := np.full(len(keys_N2), -1), keys_N2)
        return row_N

    def _find(self, row_N: np.ndarray, keys_N2: np.ndarray, positions: np.ndarray | None = None) -> None:
        """Set the rows of some positions; None: of all."""
        for piece in in_key_order(keys_N2, positions):
            for left in (piece[part] for part in slices(len(piece))):  # one key, as of no text, may be that of most
                for own, numbers in self._index:
                    row_N[left] = find(own.columns, keys_N2[left], numbers)
                    left = left[row_N[left] < 0]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Items of each row, int64 (N,)."""
        return self._read(rows, items=False)[0]

    def take(self, rows: np.ndarray) -> Tensor:
        """The items of some rows, one row after the other, float32 (items, width).

        Raises:
            DataError: the checksum of a row is wrong; its shard is removed.
        """
        return self.take_with_lengths(rows)[1]

    def take_with_lengths(self, rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Items of each row, int64 (N,), and the items, as `take` gives them."""
        lengths_N, items_ND = self._read(rows)
        return lengths_N, torch.from_numpy(items_ND)

    def _read(self, rows: np.ndarray, items: bool = True) -> tuple[np.ndarray, np.ndarray]:
        order, bounds_N2 = np.argsort(rows, kind="stable"), np.empty((len(rows), 2), np.int64)
        shard_N = rows[order] >> BITS
        groups = np.split(order, np.flatnonzero(shard_N[1:] != shard_N[:-1]) + 1) if len(rows) else []
        with self._while_it_is_there():
            for group in groups:
                bounds_N2[group] = self._shard(int(rows[group[0]] >> BITS)).bounds(rows[group] & LOCAL)
            lengths_N = bounds_N2[:, 1] - bounds_N2[:, 0]
            ends_N = np.cumsum(lengths_N)
            out_ND = np.empty((int(ends_N[-1]) if items and len(rows) else 0, self.item_format.width), np.float32)
            for group in groups if items else []:
                shard = self._shard(int(rows[group[0]] >> BITS))
                places = numbers_from(ends_N[group] - lengths_N[group], lengths_N[group])
                out_ND[places] = shard.take(rows[group] & LOCAL, bounds_N2[group])
        return lengths_N, out_ND

    def fill(self, keys_N2: np.ndarray, job: ExtractionJob, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Compute what is missing and return the row of each key, int64 (N,).

        If shards that have some of the keys are small together, they are verified first, once per table object, and
        damaged ones are computed again. Rows of larger ones are verified whenever they are read, see `take`.

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
        row_N = self.find(keys_N2)
        damaged = self._damaged(row_N, quiet=rank > 0)
        if damaged:
            self._open()
            lost = np.flatnonzero(np.isin(row_N >> BITS, damaged))
            row_N[lost] = -1
            self._find(row_N, keys_N2, lost)
        if (row_N < 0).any():
            self._compute(keys_N2, row_N, job, rank, world_size)
            self._find(row_N, keys_N2, np.flatnonzero(row_N < 0))
        if (row_N < 0).any():
            raise DataError(f"{self.folder}: {REMOVED}")
        return row_N

    def _compute(self, keys_N2: np.ndarray, row_N: np.ndarray, job: ExtractionJob, rank: int, world_size: int) -> None:
        """Fill shards with the keys that have no row."""
        missing = first_of_each(keys_N2, np.flatnonzero(row_N < 0))
        items = int(items_of(job, missing).sum()) if job.ragged else len(missing)
        size = items * self.item_format.item_bytes
        free = check_room(self.folder, self.name, min(size, self.shard_bytes) if is_copy(self.folder) else size)
        if not is_quiet():
            self._log(f"{self.name}: {len(missing):,} rows to compute, {readable(size)} of {readable(free)} free")
        most = self.shard_bytes // self.item_format.item_bytes
        plan = list(plan_shards(keys_N2, missing, job, world_size, most))
        first = rank * len(plan) // world_size
        ours = plan[first:] + plan[:first]
        fill_shards(self.folder, self.item_format, ours, keys_N2, job, self.name, quiet=rank > 0)
        self._open()
        self._verify_index()
        self._checked |= {shard.folder.name for shard in self._shards.values()} & {name for name, _ in plan}

    def verify(self, row_N: np.ndarray) -> bool:
        """Whether shards that have some of the rows are sound, if they are small together; damaged ones are removed."""
        with self._while_it_is_there():
            damaged = self._damaged(row_N, quiet=True)
            if damaged:
                self._open()
        return not damaged

    def _damaged(self, row_N: np.ndarray, quiet: bool) -> list[int]:
        """Numbers of damaged shards, which are removed then; looked for among those here, if small together."""
        there = {number: self._shards[number] for number in shard_numbers(row_N)}
        needed = {number: shard for number, shard in there.items() if values_are_here(shard.folder)}
        unchecked = {number: shard for number, shard in needed.items() if shard.folder.name not in self._checked}
        size = sum(shard.items for shard in unchecked.values()) * self.item_format.item_bytes
        if size > VERIFIED_FIRST:
            return []
        damaged = []
        quiet = quiet or size <= self.shard_bytes
        bar = tqdm(unchecked.items(), f"{self.name}: verify", unit="shard", leave=False, disable=quiet)
        for number, shard in bar:
            if is_sound(shard.folder, self.item_format):
                self._checked.add(shard.folder.name)
            else:
                damaged.append(number)
                self._remove_damaged(shard.folder)
        return damaged

    def _verify_index(self) -> None:
        """Verify the parts of the index that are not verified yet; damaged ones are written again."""
        while unchecked := [part.path for part, _ in self._index if part.path.name not in self._checked]:
            for path in unchecked:
                if index_is_sound(path):
                    self._checked.add(path.name)
                elif path.is_file():  # otherwise another process has written a newer one
                    self._log(f"{path}: damaged; it is written again")
                    with disk_errors(path):
                        path.unlink(missing_ok=True)
                    forget(path)
            if not all(path.name in self._checked for path in unchecked):
                self._open()

    def _remove_damaged(self, folder: Path) -> None:
        self._log(f"{folder}: damaged; it is removed and computed again")
        remove_damaged(folder, self.item_format)
