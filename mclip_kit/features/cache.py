"""The feature cache: tables of frozen towers' outputs under one folder, so each output is computed once.

A table belongs to everything that decides its features (tower, weights, preprocessing, precision), and a row belongs to
the content of an input. If any of them changes, features are computed again; otherwise every recipe finds them.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from mclip_kit.data.row_files import ROWS, discard, is_whole, once
from mclip_kit.errors import DataError, DiskError, StorageError
from mclip_kit.features import hashing
from mclip_kit.features.copies import touch, withdraw
from mclip_kit.features.file_hashes import WIDTH
from mclip_kit.features.item_format import Dtype, ItemFormat
from mclip_kit.features.table import Table
from mclip_kit.files import temporary_directory, write_json
from mclip_kit.layout import FEATURES
from mclip_kit.progress import is_quiet, tqdm
from mclip_kit.storage import fetch, place
from mclip_kit.urls import is_copy

T = TypeVar("T")
CACHE_VARIABLE = "MCLIP_KIT_CACHE"
FILES = "files"  # the kind of the table of known hashes of picture files


def root_beside(folder: Path, named: str | None = None) -> Path:
    """Where a cache is that belongs to a run or a model.

    Args:
        folder: of the run or the model; the cache is beside it unless it or the environment names another place.
        named: a folder or a URL.
    """
    beside = Path("runs") if is_copy(folder) else folder.parent  # features of what is in object storage stay here
    return place(named or os.environ.get(CACHE_VARIABLE) or beside / FEATURES)


class FeatureCache:
    """Opens the table of each frozen output.

    Args:
        root: the cache's folder. None: features are kept as long as this object, in float32.
        dtype: how outputs of frozen towers are stored. int8 is for token states; other outputs are fp16 then.
        precision: the type in which towers compute, by autocast unless it is float32.
        rank: this process's number.
        world_size: processes that fill the cache together.
        tokens: whether token states are kept too.
        workers: reader processes that decode picture files; None: as many as cores, see `job.load_batches`.
        log: takes a line about what is computed, and about what is damaged.
        device: where towers run, if features of CPUs and GPUs are kept apart; None: they are not.

    Attributes:
        trained: towers that are trained; their features are not kept, because they change with every step.
        refused: why features are not kept for which the disk has no room.
        weights: tower -> hash of its weights, for those that were asked for.
        writes: whether rows are written into the root, see `once`.
        keeps_students: whether embeddings of whole students are kept too, because nothing is trained.
    """

    def __init__(
        self,
        root: Path | None = None,
        dtype: Dtype = "fp16",
        precision: torch.dtype = torch.float32,
        rank: int = 0,
        world_size: int = 1,
        tokens: bool = True,
        workers: int | None = None,
        log: Callable[[str], None] = tqdm.write,
        device: torch.device | None = None,
    ) -> None:
        self.root, self.dtype, self.precision, self.device = root, dtype, precision, device
        self.rank, self.world_size, self.tokens = rank, world_size, tokens
        self.workers, self.log = workers, log
        self.trained: frozenset[str] = frozenset()
        self.refused: list[str] = []
        self.weights: dict[str, str] = {}
        self.writes = True
        self.keeps_students = False
        self._temporary = temporary_directory()
        self._tables: dict[str, Table] = {}

    def is_persistent(self, tower: str) -> bool:
        """Whether features of a tower are kept for later runs."""
        return self.root is not None and tower not in self.trained

    @property
    def facts(self) -> dict[str, Any]:
        """What decides features beside tower and input, as JSON values."""
        known = {"precision": str(self.precision).removeprefix("torch.")}
        return known | ({"device": self.device.type} if self.device else {})

    @property
    def shares(self) -> bool:
        """Whether other processes find what this one keeps, and it may keep more."""
        return self.root is not None and self.writes

    def note(self, line: str) -> None:
        """Log a line that is no warning, unless the process is quiet."""
        if not is_quiet():
            self.log(line)

    def do_without(self, error: Exception) -> None:
        """Say that features for which there is no room are computed in every step."""
        self.refused.append(str(error))
        self.log(f"{error}: computed in every step instead")

    @property
    def file_hashes(self) -> Table:
        """The table of known hashes of picture files, see `file_hashes.hash_files`."""
        facts = {"named": "picture files", "weights": "", "precision": ""}
        return self.table(FILES, FILES, WIDTH, lambda: facts, "uint8")

    def table(
        self,
        tower: str,
        kind: str,
        width: int,
        facts: Callable[[], dict[str, Any]],
        dtype: Dtype | None = None,
        variant: str = "",
    ) -> Table:
        """The table of one kind of output of a tower.

        Args:
            tower: the tower's name in the model.
            kind: the kind of output, such as `image` or `tokens`: the start of the folder's name.
            width: numbers of an item.
            facts: everything else that decides the features, as JSON values; called once, until the tower is dropped.
            dtype: how its items are stored, if not as the cache says.
            variant: what tells tables of the same kind of output apart while they are open.
        """
        name = f"{tower} {kind} {variant}".strip()
        if name not in self._tables:
            persistent = self.is_persistent(tower)
            self._tables[name] = (
                self._persistent_table(kind, width, facts(), dtype or self._dtype_of(kind))
                if persistent
                else self._temporary_table(name, kind, width, dtype or "fp32")
            )
        return self._tables[name]

    def _dtype_of(self, kind: str) -> Dtype:
        return "fp16" if self.dtype == "int8" and kind != "tokens" else self.dtype

    def _persistent_table(self, kind: str, width: int, facts: dict[str, Any], dtype: Dtype) -> Table:
        assert self.root is not None
        facts = {"kind": kind, "width": width, "dtype": dtype, **facts}
        named = facts.pop("named", "")
        folder = self.root / f"{kind}-{hashing.hash_facts(facts)}"
        table = Table(folder, ItemFormat(width, dtype), _label(kind), log=self.log)
        if not (folder / "table.json").is_file():
            write_json(folder / "table.json", {**facts, "named": named})
        with suppress(OSError, StorageError):  # the cache may be read-only
            touch(folder / "table.json")  # the time of last use
        return table

    def _temporary_table(self, name: str, kind: str, width: int, dtype: Dtype) -> Table:
        folder = Path(self._temporary.name, name.replace(" ", "-"))
        return Table(folder, ItemFormat(width, dtype), _label(kind), log=lambda line: None)

    def once(self, name: str, write: Callable[[Path], None]) -> Path:
        """A folder of the cache that is written once and that all processes share, see `row_files.once`.

        Where the cache cannot be written, the folder is this process's own.
        """
        own = Path(self._temporary.name)
        if self.root is not None and (self.writes or is_whole(fetch(self.root / name))):
            try:
                return once(self.root / name, write)
            except (DiskError, StorageError) as error:
                withdraw(self.root / name)
                self.log(f"{error}; {name} is made by every process for itself")
        return once(own / name, write)

    def rows(self, facts: dict[str, Any], write: Callable[[Path], None], opened: Callable[[Path], T]) -> T:
        """Rows that one process makes and keeps beside the features, and all others map.

        Args:
            facts: everything that decides the rows, as JSON values.
            write: makes them in a folder.
            opened: maps them; DataError if they are damaged: they are made again.
        """
        made = partial(self.once, f"{ROWS}-{hashing.hash_facts(facts)}", write)
        folder = made()
        try:
            return opened(folder)
        except DataError as error:
            self.log(str(error))
            discard(folder)
            return opened(made())

    def drop(self, tower: str) -> None:
        """Close a tower's tables, because its weights have changed; remove its temporary features."""
        self.weights.pop(tower, None)
        for name in [name for name in self._tables if name.split()[0] == tower]:
            del self._tables[name]
            shutil.rmtree(Path(self._temporary.name, name.replace(" ", "-")), ignore_errors=True)


def _label(kind: str) -> str:
    """A table's name in progress bars and messages."""
    return "picture files" if kind == FILES else f"{kind} features"
