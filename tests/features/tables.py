"""A made-up tower whose outputs are known, and tables of them; processes; damage."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mclip_kit.data import content_keys
from mclip_kit.features.item_format import Dtype, ItemFormat
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.table import Table

FORK = multiprocessing.get_context("fork")
WIDTH = 8
PRECISION = {"fp16": 2**-11, "fp32": 0.0, "int8": 0.5 / 127}  # of a row's largest number


def sizes(names: Sequence[int]) -> np.ndarray:
    """Tokens of each input."""
    return np.array([1 + name * 7 % 5 for name in names])


def features(name: int, ragged: bool) -> np.ndarray:
    """The output of a tower of the tests for an input, float32 (items, WIDTH)."""
    items = int(sizes([name])[0]) if ragged else 1
    place = name * 100 + 10 * np.arange(items)[:, None] + np.arange(WIDTH)
    return np.sin(place).astype(np.float32)


def keys_of(names: Sequence[int]) -> np.ndarray:
    return content_keys.hash_texts(str(name) for name in names)


@dataclass
class Tower:
    """A tower that counts what goes through it.

    Attributes:
        names: the inputs; those of them in `bad` cannot be read.
        pause: seconds a batch.
        log: a file that takes a line for each input.
        seen: inputs of each batch.
    """

    names: Sequence[int]
    ragged: bool = False
    sized: bool = True
    bad: Sequence[int] = ()
    budget: int = 16
    pause: float = 0.0
    log: Path | None = None
    workers: int = 0
    change: Callable[[np.ndarray], np.ndarray] = lambda values_ND: values_ND
    seen: list[list[int]] = field(default_factory=list)

    def job(self) -> ExtractionJob:
        return ExtractionJob(
            self._load, self._run, sizes(self.names) if self.sized else None, self.ragged, self.budget, self.workers
        )

    def _load(self, part: Sequence[int]) -> tuple[list[int], list[int]]:
        names = [self.names[i] for i in part]
        return names, [row for row, name in enumerate(names) if name in self.bad]

    def _run(self, names: list[int]) -> torch.Tensor:
        if self.pause:
            time.sleep(self.pause)
        self.seen.append(names)
        if self.log:
            with open(self.log, "a", encoding="utf-8") as handle:
                handle.write("".join(f"{name}\n" for name in names))
        return torch.from_numpy(self.change(np.concatenate([features(name, self.ragged) for name in names])))

    @property
    def count(self) -> int:
        return sum(len(batch) for batch in self.seen)


def table_in(folder: Path, dtype: Dtype = "fp32", rows: int = 20, log: Callable[[str], None] | None = None) -> Table:
    """A table with about so many items a shard."""
    item_format = ItemFormat(WIDTH, dtype)
    return Table(folder, item_format, "made-up features", rows * item_format.item_bytes, log or (lambda line: None))


def filled(folder: Path, tower: Tower, dtype: Dtype = "fp32", **options: Any) -> tuple[Table, np.ndarray]:
    table = table_in(folder, dtype, **options)
    return table, table.fill(keys_of(tower.names), tower.job())


def assert_right(
    table: Table, rows: np.ndarray, names: Sequence[int], ragged: bool = False, dtype: Dtype = "fp32"
) -> None:
    """The rows are those of the names."""
    assert rows.min() >= 0
    expected_ND = np.concatenate([features(name, ragged) for name in names])
    found_ND = table.take(rows).numpy()
    assert found_ND.dtype == np.float32
    assert found_ND.shape == expected_ND.shape
    allowed_N = PRECISION[dtype] * np.abs(expected_ND).max(1) + 1e-9
    assert (np.abs(found_ND - expected_ND).max(1) <= allowed_N).all()
    assert list(table.lengths(rows)) == (list(sizes(names)) if ragged else [1] * len(names))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the empty lock files that killed processes leave."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    locks = [path for path in files if path.name.startswith(".") and path.suffix == ".lock"]
    assert not any(path.stat().st_size for path in locks)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path not in locks}


def whole_shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != ".part")


NAMES = list(range(100, 200))


def in_child(task: Callable[[], None]) -> Any:
    """Start a task in a forked process."""

    def alone() -> None:
        tqdm.set_lock(threading.RLock())  # the one of all processes would stay locked after a kill
        task()

    process = FORK.Process(target=alone)
    process.start()
    return process


def killed_after(seconds: float, task: Callable[[], None]) -> int:
    """The exit code of a task that is killed if it is not done in time."""
    process = in_child(task)
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return int(process.exitcode)


def dies_at(step: str, at: int, after: bool = False) -> None:
    """This process dies before (or after) its call of that number of `os.STEP`, such as fsync; for `in_child`."""
    real, left = getattr(os, step), [at]

    def deadly(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)
        if left[0] == 0 and after:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, step, deadly)


def together(*tasks: Callable[[], None]) -> None:
    processes = [in_child(task) for task in tasks]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def flip(path: Path, at: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 0x10
    path.write_bytes(bytes(raw))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


SHAPES = [(False, "fp16"), (True, "int8")]
