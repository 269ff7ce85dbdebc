"""Several processes fill one table, and compute nothing twice."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.features import filling
from mclip_kit.features.item_format import Dtype
from mclip_kit.features.shard_writer import claim_shard
from mclip_kit.features.shards import shard_name
from tests.features.tables import (
    FORK,
    NAMES,
    SHAPES,
    Tower,
    assert_right,
    content,
    filled,
    in_child,
    keys_of,
    table_in,
    together,
    whole_shards,
)


def rows_of_shards(folder: Path) -> list[int]:
    return [json.loads((shard / "shard.json").read_text(encoding="utf-8"))["rows"] for shard in whole_shards(folder)]


@pytest.mark.parametrize(("ragged", "dtype"), SHAPES)
def test_two_processes_fill_one_table_and_compute_nothing_twice(ragged: bool, dtype: Dtype, tmp_path: Path) -> None:
    names = list(range(300))
    filled(tmp_path / "one", Tower(names, ragged), dtype, rows=40)
    logs = [tmp_path / "log-0", tmp_path / "log-1"]

    both = FORK.Barrier(2)

    def task(rank: int) -> None:
        table = table_in(tmp_path / "two", dtype, rows=40)
        tower = Tower(names, ragged, log=logs[rank])

        def meet(values_ND: np.ndarray) -> np.ndarray:
            if len(tower.seen) <= 8:  # of about 60 batches
                both.wait(60)
            return values_ND

        tower.change = meet
        rows = table.fill(keys_of(names), tower.job(), rank, 2)
        assert_right(table, rows, names, ragged, dtype)

    for _ in range(3):
        together(lambda: task(0), lambda: task(1))
        done = [sorted(map(int, log.read_text(encoding="utf-8").split())) for log in logs]
        assert sorted(done[0] + done[1]) == names
        assert min(map(len, done)) > 30  # the first 8 batches of each
        assert content(tmp_path / "two") == content(tmp_path / "one")
        for path in (*logs, tmp_path / "two"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_each_process_gets_a_shard_even_if_one_shard_had_room_for_all(tmp_path: Path) -> None:
    table = table_in(tmp_path, rows=10**6)
    table.fill(keys_of(NAMES), Tower(NAMES).job(), 0, 2)
    assert rows_of_shards(tmp_path) == [50, 50]


def test_each_process_starts_with_other_shards(tmp_path: Path) -> None:
    order = []
    for rank in range(3):
        tower = Tower(NAMES, sized=False, budget=20)
        table = table_in(tmp_path / str(rank))
        table.fill(keys_of(NAMES), tower.job(), rank, 3)
        order.append([batch[0] for batch in tower.seen])
    assert order == [[100, 120, 140, 160, 180], [120, 140, 160, 180, 100], [160, 180, 100, 120, 140]]


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

    monkeypatch.setattr(filling.time, "sleep", pause)
    table, found = filled(tmp_path, waiting, rows=rows)
    assert pauses == [filling.PATIENCE] * 3
    assert_right(table, found, names)


def test_many_processes_open_and_fill_at_once(tmp_path: Path) -> None:
    """Indexes come and go under those who read them."""

    def task(number: int) -> None:
        for start in range(12):
            names = [start * 10 + (number * 3 + i) % 13 for i in range(10)]
            table, rows = filled(tmp_path, Tower(names), rows=5)
            assert_right(table, rows, names)

    together(*(lambda number=number: task(number) for number in range(4)))
