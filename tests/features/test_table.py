"""Tables: rows that were filled are found, also after kills, with several processes and after damage."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from mclip_kit.errors import DataError
from mclip_kit.features import hashing
from mclip_kit.features import table as features_table
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.shard_writer import ShardWriter, claim_shard, remove_damaged
from mclip_kit.features.shards import BLOCK, Dtype, ItemFormat, shard_name
from mclip_kit.features.table import NoRoom, Table

FORK = multiprocessing.get_context("fork")
WIDTH = 8
PRECISION = {"fp16": 2**-11, "fp32": 0.0, "int8": 0.5 / 127}  # of a row's largest number


def sizes(names: Sequence[int]) -> np.ndarray:
    """Tokens of each input."""
    return np.array([1 + name * 7 % 5 for name in names])


def features(name: int, ragged: bool) -> np.ndarray:
    """What the make-believe tower gives for an input, float32 (items, WIDTH)."""
    items = int(sizes([name])[0]) if ragged else 1
    place = name * 100 + 10 * np.arange(items)[:, None] + np.arange(WIDTH)
    return np.sin(place).astype(np.float32)


def keys_of(names: Sequence[int]) -> np.ndarray:
    return hashing.hash_texts(str(name) for name in names)


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


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int8"])
def test_what_is_filled_is_found(dtype: Dtype, ragged: bool, tmp_path: Path) -> None:
    tower = Tower(NAMES, ragged)
    table, rows = filled(tmp_path, tower, dtype)
    assert len(whole_shards(tmp_path)) > 3
    assert len(table) == tower.count == len(NAMES)
    assert_right(table, rows, NAMES, ragged, dtype)
    chosen = np.random.default_rng(0).integers(0, len(NAMES), 300)  # in any order, some of them often
    assert_right(table, rows[chosen], [NAMES[i] for i in chosen], ragged, dtype)
    later = table_in(tmp_path, dtype)
    assert_right(later, later.find(keys_of(NAMES)), NAMES, ragged, dtype)
    assert (later.find(keys_of([1, 2, 3])) == -1).all()


def test_half_a_byte_is_not_enough_for_int8(tmp_path: Path) -> None:
    """The bound above is near what is lost."""
    table, rows = filled(tmp_path, Tower(NAMES), "int8")
    lost = np.abs(table.take(rows).numpy() - np.concatenate([features(name, False) for name in NAMES])).max()
    assert 0.3 / 127 < lost <= 0.5 / 127 + 1e-6


def test_nothing_is_empty(tmp_path: Path) -> None:
    table, rows = filled(tmp_path, Tower([]))
    assert len(rows) == 0
    assert table.take(rows).shape == (0, WIDTH)


def test_each_key_is_computed_once(tmp_path: Path) -> None:
    tower = Tower([*NAMES, *NAMES[::-1], *NAMES[:7]])
    table, rows = filled(tmp_path, tower)
    assert tower.count == len(NAMES)
    assert_right(table, rows, tower.names)
    again = Tower(NAMES[::-1])
    table, rows = filled(tmp_path, again)
    assert again.count == 0
    assert_right(table, rows, again.names)
    more = Tower([*NAMES, *range(40)])
    table, rows = filled(tmp_path, more)
    assert more.count == 40
    assert_right(table, rows, more.names)


def test_rows_that_were_found_stay_valid_while_the_table_grows(tmp_path: Path) -> None:
    table, rows = filled(tmp_path, Tower(NAMES))
    before = {path.name for path in whole_shards(tmp_path)}
    for start in range(0, 100, 20):
        more = list(range(start, start + 20))
        assert_right(table, table.fill(keys_of(more), Tower(more).job()), more)
    assert min({path.name for path in whole_shards(tmp_path)} - before) < max(before)  # some sort before earlier ones
    assert_right(table, rows, NAMES)
    assert (table.find(keys_of(NAMES)) == rows).all()


def test_another_table_sees_what_one_has_filled_since(tmp_path: Path) -> None:
    early = table_in(tmp_path)
    filled(tmp_path, Tower(NAMES))
    idle = Tower(NAMES)
    assert_right(early, early.fill(keys_of(NAMES), idle.job()), NAMES)
    assert idle.count == 0


@pytest.mark.parametrize("ragged", [False, True])
def test_batches_are_of_similar_size_and_within_the_budget(ragged: bool, tmp_path: Path) -> None:
    tower = Tower(NAMES, ragged, budget=16)
    filled(tmp_path, tower, rows=1000)
    seen = [sizes(batch) for batch in tower.seen]
    assert all(len(batch) * batch.max() <= 16 for batch in seen)
    assert (np.diff(np.concatenate(seen)) >= 0).all()
    tokens = sum(int(batch.sum()) for batch in seen)
    assert sum(len(batch) * int(batch.max()) for batch in seen) < 1.1 * tokens
    assert len(seen) < 1.3 * tokens / 16


def test_an_input_beyond_the_budget_goes_alone(tmp_path: Path) -> None:
    tower = Tower([name for name in NAMES if sizes([name]) > 3], budget=3)
    table, rows = filled(tmp_path, tower)
    assert {len(batch) for batch in tower.seen} == {1}
    assert_right(table, rows, tower.names)


def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    for workers in (0, 2):
        tower = Tower(NAMES[:40], sized=False, workers=workers, bad=[104, 130])
        filled(tmp_path / str(workers), tower)
    assert content(tmp_path / "0") == content(tmp_path / "2")


# --- killed, and resumed


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


SHAPES = [(False, "fp16"), (True, "int8")]


@pytest.mark.parametrize(("ragged", "dtype"), SHAPES)
def test_killed_at_any_moment_and_resumed_it_is_as_never_killed(ragged: bool, dtype: Dtype, tmp_path: Path) -> None:
    names, bad = list(range(300)), [] if ragged else [5, 77, 201]
    slow = Tower(names, ragged, bad=bad, pause=0.006, budget=12)
    quick = Tower(names, ragged, bad=bad, budget=12)
    filled(tmp_path / "whole", quick, dtype, rows=90)
    draw, codes = random.Random(3), []
    while len(codes) < 20:
        codes.append(
            killed_after(draw.uniform(0.02, 0.09), lambda: filled(tmp_path / "cut", slow, dtype, rows=90) and None)
        )
        if codes[-1] == 0:
            shutil.rmtree(tmp_path / "cut")
    assert codes.count(-signal.SIGKILL) >= 12
    assert set(codes) <= {0, -signal.SIGKILL}
    table, rows = filled(tmp_path / "cut", Tower(names, ragged, bad=bad, budget=12), dtype, rows=90)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not [path for path in (tmp_path / "cut").rglob("*") if path.suffix == ".part"]
    assert list(np.flatnonzero(table.unreadable(rows))) == bad


STEPS = ("replace", "fsync", "truncate")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_every_step_that_counts(
    step: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each rename, flush and cut of a file: the process dies in its first, its second, ..."""
    names, bad = list(range(60)), [3, 41]
    filled(tmp_path / "whole", Tower(names, bad=bad), rows=30)
    real = getattr(os, step)

    def fill_and_die(at: int) -> None:
        left = [at]

        def deadly(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments)
            if left[0] == 0 and after:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(os, step, deadly)
        filled(tmp_path / "cut", Tower(names, bad=bad), rows=30)

    codes = []
    for at in range(1, 100):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        codes.append(killed_after(60, lambda at=at: fill_and_die(at)))
        table, rows = filled(tmp_path / "cut", Tower(names, bad=bad), rows=30)
        assert content(tmp_path / "cut") == content(tmp_path / "whole")
        assert list(np.flatnonzero(table.unreadable(rows))) == bad
        if codes[-1] == 0:
            break
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 4


def test_what_was_done_before_the_kill_is_not_done_again(tmp_path: Path) -> None:
    names, log = list(range(100)), tmp_path / "log"
    slow = Tower(names, log=log, pause=0.01, sized=False, budget=5)
    code = killed_after(0.12, lambda: filled(tmp_path / "cut", slow, rows=1000) and None)
    assert code == -signal.SIGKILL
    done = len(log.read_text(encoding="utf-8").split())
    assert 0 < done < 100
    rest = Tower(names, sized=False, budget=5)
    filled(tmp_path / "cut", rest, rows=1000)
    assert rest.count <= 100 - done + 5  # the batch at which it died


# --- damage


def flip(path: Path, at: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 0x10
    path.write_bytes(bytes(raw))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "first": flip,
    "last": lambda path: flip(path, -1),
    "cut": halve,
    "empty": empty,
    "missing": Path.unlink,
}
FILES = ("values.bin", "scales.bin", "keys.bin", "offsets.bin", "unreadable.bin", "blocks.bin", "shard.json")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_shard_is_removed_and_computed_again(name: str, damage: str, tmp_path: Path) -> None:
    filled(tmp_path / "t", Tower(NAMES, True), "int8", rows=90)
    before = content(tmp_path / "t")
    victim = whole_shards(tmp_path / "t")[1]
    of_victim = json.loads((victim / "shard.json").read_text(encoding="utf-8"))["rows"]
    DAMAGES[damage](victim / name)
    said: list[str] = []
    again = Tower(NAMES, True)
    table, rows = filled(tmp_path / "t", again, "int8", rows=90, log=said.append)
    assert_right(table, rows, NAMES, True, "int8")
    assert content(tmp_path / "t") == before
    assert any(str(victim) in line and "damaged" in line for line in said)
    assert again.count == of_victim


def test_no_flipped_byte_of_a_description_is_believed(tmp_path: Path) -> None:
    names = list(range(30))
    filled(tmp_path, Tower(names), rows=1000)
    (shard,) = whole_shards(tmp_path)
    before = (shard / "shard.json").read_bytes()
    for at in range(before.index(b"tool") - 3):  # which version wrote it decides nothing
        (shard / "shard.json").write_bytes(before)
        flip(shard / "shard.json", at)
        idle, said = Tower(names), list[str]()
        table, rows = filled(tmp_path, idle, rows=1000, log=said.append)
        assert_right(table, rows, names)
        damaged = any("damaged" in line for line in said)
        assert idle.count == (len(names) if damaged else 0)
        assert before[at : at + 1].isspace() or damaged
    assert (shard / "shard.json").read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("at", [1 / 6, 1 / 2, 5 / 6])
def test_a_damaged_index_is_noticed_and_nothing_is_computed(damage: str, at: float, tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES))
    before = content(tmp_path)
    (index,) = tmp_path.glob("index-*.bin")
    if damage == "flipped":  # in the keys' first half, in their second, in the rows; in the highest byte of a number
        flip(index, int(at * len(NAMES) * 3) * 8 + 7)
    else:
        DAMAGES[damage](index)
    idle, said = Tower(NAMES), list[str]()
    table, rows = filled(tmp_path, idle, log=said.append)
    assert_right(table, rows, NAMES)
    assert idle.count == 0
    assert content(tmp_path) == before
    assert damage in ("cut", "empty", "missing") or any(str(index) in line for line in said)


def test_damage_everywhere_at_once(tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES, True), "int8", rows=90)
    before = content(tmp_path)
    draw = random.Random(5)
    for folder in whole_shards(tmp_path):
        for name in draw.sample(FILES, 3):
            path = folder / name
            draw.choice([lambda p: flip(p, draw.randrange(10**6)), halve, empty, Path.unlink])(path)
    table, rows = filled(tmp_path, Tower(NAMES, True), "int8", rows=90)
    assert_right(table, rows, NAMES, True, "int8")
    assert content(tmp_path) == before


def test_other_keys_than_the_damaged_shards_are_right_too(tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES, sized=False))
    flip(whole_shards(tmp_path)[0] / "values.bin", 5)
    some = Tower(NAMES[::3], sized=False)
    table, rows = filled(tmp_path, some)
    assert_right(table, rows, some.names)
    rest = Tower(NAMES, sized=False)
    table, rows = filled(tmp_path, rest)
    assert_right(table, rows, NAMES)
    assert some.count + rest.count <= 20


def test_a_shard_that_another_process_has_computed_again_is_not_removed(tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES))
    before = content(tmp_path)
    for shard in whole_shards(tmp_path):
        remove_damaged(shard, ItemFormat(WIDTH, "fp32"))
    remove_damaged(tmp_path / "removed", ItemFormat(WIDTH, "fp32"))
    assert content(tmp_path) == before


def test_an_unreadable_input_stays_known_as_such(tmp_path: Path) -> None:
    bad = [NAMES[3], NAMES[40], NAMES[99]]
    for damage in (None, "values.bin", "shard.json", "keys.bin", "unreadable.bin", "blocks.bin"):
        for folder in whole_shards(tmp_path) if damage else ():
            flip(folder / str(damage), -1)
        table, rows = filled(tmp_path, Tower(NAMES, bad=bad, sized=False))
        assert list(np.flatnonzero(table.unreadable(rows))) == [3, 40, 99]
        assert list(table.unreadable(rows[[40, 5, 40]])) == [True, False, True]
        assert not table.take(rows[[3, 40, 99]]).any()
        good = np.setdiff1d(np.arange(100), [3, 40, 99])
        assert_right(table, rows[good], [NAMES[i] for i in good])


def half_written(folder: Path, ragged: bool = True, blocks: int = 3) -> Path:
    """An unfinished shard, stopped after some batches."""
    tower = Tower(NAMES, ragged, bad=[] if ragged else [NAMES[0], NAMES[98]])

    def stop(values_ND: np.ndarray) -> np.ndarray:
        if len(tower.seen) > blocks:
            raise InterruptedError
        return values_ND

    tower.change = stop
    with pytest.raises(InterruptedError):
        filled(folder, tower, "int8", rows=10**6)
    (part,) = folder.glob("*.part")
    return part


def append(raw: bytes) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        path.write_bytes(path.read_bytes() + raw)

    return to


TEARS: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "values of a block without a record": ("values.bin", append(b"\1" * 77), 3),
    "scales of such a block": ("scales.bin", append(b"\1" * 3), 3),
    "flags of such a block": ("unreadable.bin", append(b"\1" * 9), 3),
    "half a record": ("blocks.bin", append(b"\7" * 9), 3),
    "a record without its block": ("blocks.bin", append(np.array([(4, 99, 4)], BLOCK).tobytes()), 3),
    "an empty record": ("blocks.bin", append(bytes(16)), 3),
    "a record that is too long": ("blocks.bin", append(b"\xff" * 16), 3),
    "the last block's end": ("values.bin", lambda path: os.truncate(path, path.stat().st_size - 1), 2),
    "the last block's flags": ("unreadable.bin", lambda path: os.truncate(path, path.stat().st_size - 1), 2),
    "a wrong record": ("blocks.bin", lambda path: flip(path, 16), 1),
    "keys of other rows": ("keys.bin", flip, 3),
    "no offsets": ("offsets.bin", Path.unlink, 3),
    "a leftover": ("values.bin", lambda path: path.with_name(".shard.1.part.json").write_text("{"), 3),
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_part_is_continued_rightly(tear: str, ragged: bool, tmp_path: Path) -> None:
    bad = [] if ragged else [NAMES[0], NAMES[98]]
    whole = Tower(NAMES, ragged, bad=bad)
    filled(tmp_path / "whole", whole, "int8", rows=10**6)
    part = half_written(tmp_path / "torn", ragged)
    name, change, kept = TEARS[tear]
    change(part / name)
    rest = Tower(NAMES, ragged, bad=bad)
    table, rows = filled(tmp_path / "torn", rest, "int8", rows=10**6)
    assert rest.seen == whole.seen[kept:]
    assert list(table.unreadable(rows)) == [name in bad for name in NAMES]
    if tear != "an empty record":  # it is kept, and means nothing
        assert content(tmp_path / "torn") == content(tmp_path / "whole")


def test_a_part_is_continued_with_batches_of_another_size(tmp_path: Path) -> None:
    half_written(tmp_path)
    rest = Tower(NAMES, True, budget=7)
    table, rows = filled(tmp_path, rest, "int8", rows=10**6)
    assert rest.count < len(NAMES)
    assert_right(table, rows, NAMES, True, "int8")
    idle = Tower(NAMES, True)
    filled(tmp_path, idle, "int8", rows=10**6)
    assert idle.count == 0


# --- several processes


def together(*tasks: Callable[[], None]) -> None:
    processes = [in_child(task) for task in tasks]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize(("ragged", "dtype"), SHAPES)
def test_two_processes_fill_one_table_and_compute_nothing_twice(ragged: bool, dtype: Dtype, tmp_path: Path) -> None:
    names = list(range(300))
    filled(tmp_path / "one", Tower(names, ragged), dtype, rows=40)
    logs = [tmp_path / "log-0", tmp_path / "log-1"]

    at_once = FORK.Barrier(2)

    def task(rank: int) -> None:
        table = table_in(tmp_path / "two", dtype, rows=40)
        tower = Tower(names, ragged, log=logs[rank], pause=0.003)
        at_once.wait(60)
        rows = table.fill(keys_of(names), tower.job(), rank, 2)
        assert_right(table, rows, names, ragged, dtype)

    for _ in range(3):
        together(lambda: task(0), lambda: task(1))
        done = [sorted(map(int, log.read_text(encoding="utf-8").split())) for log in logs]
        assert sorted(done[0] + done[1]) == names
        assert min(map(len, done)) > 30  # both took part
        assert content(tmp_path / "two") == content(tmp_path / "one")
        for path in (*logs, tmp_path / "two"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_one_shard_each_where_all_would_fit_into_one(tmp_path: Path) -> None:
    table = table_in(tmp_path, rows=10**6)
    table.fill(keys_of(NAMES), Tower(NAMES).job(), 0, 2)
    assert [shard["rows"] for shard in descriptions(tmp_path)] == [50, 50]


def test_each_process_begins_with_its_own_share(tmp_path: Path) -> None:
    order = []
    for rank in range(3):
        tower = Tower(NAMES, sized=False, budget=20)
        table = table_in(tmp_path / str(rank))
        table.fill(keys_of(NAMES), tower.job(), rank, 3)
        order.append([batch[0] for batch in tower.seen])
    assert order == [[100, 120, 140, 160, 180], [120, 140, 160, 180, 100], [160, 180, 100, 120, 140]]


def descriptions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((shard / "shard.json").read_text(encoding="utf-8")) for shard in whole_shards(folder)]


def test_two_processes_with_other_keys_are_both_right(tmp_path: Path) -> None:
    def task(names: list[int]) -> None:
        table, rows = filled(tmp_path, Tower(names, True, pause=0.001), "fp16", rows=40)
        assert_right(table, rows, names, True, "fp16")

    for start in range(0, 400, 100):
        few, more = list(range(start, start + 70)), list(range(start + 30, start + 100))
        together(lambda few=few: task(few), lambda more=more: task(more))
    idle = Tower(list(range(400)), True)
    table, rows = filled(tmp_path, idle, "fp16", rows=40)
    assert idle.count == 0
    assert_right(table, rows, idle.names, True, "fp16")


def test_a_process_that_dies_at_a_shard_leaves_it_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(range(100))
    waiting, rows = Tower(names, sized=False), 10**6
    claim = tmp_path / shard_name(keys_of(names))

    def hold() -> None:
        with claim_shard(claim) as mine:
            assert mine
            (tmp_path / "held").touch()
            time.sleep(60)

    holder = in_child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    (tmp_path / "held").unlink()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        """Waits for the holder; the third time it kills it."""
        assert waiting.count == 0
        pauses.append(seconds)
        if len(pauses) == 3:
            os.kill(holder.pid, signal.SIGKILL)
            holder.join()

    monkeypatch.setattr(features_table.time, "sleep", pause)
    table, found = filled(tmp_path, waiting, rows=rows)
    assert pauses == [features_table.PATIENCE] * 3
    assert_right(table, found, names)


def test_many_processes_open_and_fill_at_once(tmp_path: Path) -> None:
    """Indexes come and go under those who read them."""

    def task(number: int) -> None:
        for start in range(12):
            names = [start * 10 + (number * 3 + i) % 13 for i in range(10)]
            table, rows = filled(tmp_path, Tower(names), rows=5)
            assert_right(table, rows, names)

    together(*(lambda number=number: task(number) for number in range(4)))


# --- what cannot be stored


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values_ND: np.ndarray) -> np.ndarray:
        values_ND[0, 3] = value
        return values_ND

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int8"])
@pytest.mark.filterwarnings("error")
def test_numbers_that_cannot_be_stored_are_refused(dtype: Dtype, value: float, tmp_path: Path) -> None:
    tower = Tower(NAMES[:10], change=with_value(value), sized=False)
    if value == 1e5 and dtype != "fp16":
        table, rows = filled(tmp_path, tower, dtype)
        assert table.take(rows).max() == pytest.approx(1e5)
        return
    with pytest.raises(DataError, match="too large for fp16" if value == 1e5 else "non-finite") as error:
        filled(tmp_path, tower, dtype)
    assert "\n" not in str(error.value)
    assert whole_shards(tmp_path) == []
    table, rows = filled(tmp_path, Tower(NAMES[:10], sized=False), dtype)
    assert_right(table, rows, NAMES[:10], dtype=dtype)


def test_a_full_disk_is_noticed_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = Tower(NAMES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(NAMES) * WIDTH * 4))
    with pytest.raises(NoRoom, match=r"made-up features would take 0\.00 MB, but .* free") as error:
        filled(tmp_path, tower)
    assert str(tmp_path) in str(error.value)
    assert tower.count == 0
    assert not list(tmp_path.iterdir())
    filled(tmp_path, Tower(NAMES[:90]))


def test_what_is_computed_is_said_before(tmp_path: Path) -> None:
    said: list[str] = []
    filled(tmp_path, Tower(NAMES), log=said.append)
    assert len(said) == 1
    assert said[0].startswith("made-up features: 100 rows to compute, 0.00 MB of ")
    filled(tmp_path, Tower(NAMES), log=said.append)
    assert len(said) == 1


# --- size


def test_opening_reads_descriptions_alone(tmp_path: Path) -> None:
    """Two million rows: what opening them takes does not depend on their number."""
    count, width, each = 2_000_000, 4, 500_000
    item_format = ItemFormat(width, "fp32")
    keys_N2 = np.random.default_rng(1).integers(0, 2**63, (count, 2), np.uint64)
    for start in range(0, count, each):
        own_N2 = keys_N2[start : start + each]
        folder = tmp_path / shard_name(own_N2)
        with claim_shard(folder):
            writer = ShardWriter(folder, item_format, own_N2, np.arange(each + 1))
            writer.append(each, np.repeat(np.arange(start, start + each, dtype=np.float32)[:, None], width, 1))
            writer.finish()
            writer.close()
    Table(tmp_path, item_format, "many", log=lambda line: None)  # makes the index
    found = FORK.SimpleQueue()

    def look() -> None:
        before, read = anonymous(), bytes_read()
        table = Table(tmp_path, item_format, "many", log=lambda line: None)
        read, grown = bytes_read() - read, anonymous() - before
        asked = np.array([1_999_999, 7, 1_234_567])
        assert (table.take(table.find(keys_N2[asked])).numpy()[:, 0] == asked).all()
        found.put((len(table), read, grown))

    together(look)
    rows, read, grown = found.get()
    assert rows == count
    assert read < 16 << 10  # four descriptions; the keys alone are 32 MB
    assert grown < 2 << 20


def test_a_table_of_many_shards_needs_few_open_files(tmp_path: Path) -> None:
    names = list(range(200))
    filled(tmp_path, Tower(names, sized=False), rows=2)

    def look() -> None:
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
        table, rows = filled(tmp_path, Tower(names, sized=False), rows=2)
        assert_right(table, rows, names)
        assert not table.unreadable(rows).any()

    together(look)


def bytes_read() -> int:
    """Bytes that this process has asked the system for; what it reads through maps is not counted."""
    with open("/proc/self/io", encoding="ascii") as handle:
        return next(int(line.split()[1]) for line in handle if line.startswith("rchar"))


def anonymous() -> int:
    """Bytes of this process's own memory."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) << 10 for line in handle if line.startswith("RssAnon"))


def test_a_block_that_was_written_twice_is_not_taken_for_the_next(tmp_path: Path) -> None:
    """As two writers leave it where locks do not reach, such as on two nodes."""
    names, (item_format, folder) = list(range(20)), (ItemFormat(WIDTH, "fp32"), tmp_path / "shard")
    first_ND = np.concatenate([features(name, False) for name in names[:10]])
    (tmp_path / "shard.part").mkdir()
    writer = ShardWriter(folder, item_format, keys_of(names), np.arange(21))
    writer.append(10, first_ND)
    writer.close()
    for name in ("blocks.bin", "unreadable.bin", "values.bin"):
        path = tmp_path / "shard.part" / name
        path.write_bytes(path.read_bytes() * 2)
    again = ShardWriter(folder, item_format, keys_of(names), np.arange(21))
    again.close()
    assert again.rows == 10


def test_a_disk_that_is_full_while_writing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "shard.part").mkdir()
    writer = ShardWriter(tmp_path / "shard", ItemFormat(WIDTH, "fp32"), keys_of(range(20)), np.arange(21))
    writer._handles["values.bin"].close()
    writer._handles["values.bin"] = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(DataError, match=r"shard\.part: No space left on device"):
        writer.append(1, features(1, False))
    writer.close()
