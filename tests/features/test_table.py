"""Tables: what is filled is found; what cannot be stored is refused; what opening takes."""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.errors import DataError
from mclip_kit.features.filling import NoRoom
from mclip_kit.features.item_format import Dtype, ItemFormat
from mclip_kit.features.shard_writer import ShardWriter, claim_shard
from mclip_kit.features.shards import shard_name
from mclip_kit.features.table import Table
from tests.features.tables import (
    FORK,
    NAMES,
    WIDTH,
    Tower,
    assert_right,
    content,
    features,
    filled,
    keys_of,
    sizes,
    table_in,
    together,
    whole_shards,
)


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


def test_the_bound_for_int8_is_tight(tmp_path: Path) -> None:
    """The bound of `PRECISION` is near the largest error."""
    table, rows = filled(tmp_path, Tower(NAMES), "int8")
    lost = np.abs(table.take(rows).numpy() - np.concatenate([features(name, False) for name in NAMES])).max()
    assert 0.3 / 127 < lost <= 0.5 / 127 + 1e-6


def test_a_fill_of_no_inputs_is_empty(tmp_path: Path) -> None:
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


def test_a_shard_that_another_table_computes_again_is_opened_again(tmp_path: Path) -> None:
    """Its flags, and so their checksum, may be others."""
    bad = Tower(NAMES, sized=False, bad=[103])
    early, rows = filled(tmp_path, bad)
    shutil.rmtree(next(shard.folder for shard in early._shards.values() if shard.unreadable_N.any()))
    filled(tmp_path, Tower(NAMES, sized=False))
    assert_right(early, early.fill(keys_of([7]), Tower([7]).job()), [7])
    assert not early.unreadable(rows).any()
    assert_right(early, rows, NAMES)


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
    with pytest.raises(DataError, match="too large for fp16" if value == 1e5 else "not finite") as error:
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


def test_what_is_to_compute_is_logged_first(tmp_path: Path) -> None:
    logged: list[str] = []
    filled(tmp_path, Tower(NAMES), log=logged.append)
    assert len(logged) == 1
    assert logged[0].startswith("made-up features: 100 rows to compute, 0.00 MB of ")
    filled(tmp_path, Tower(NAMES), log=logged.append)
    assert len(logged) == 1


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
