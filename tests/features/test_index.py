"""Keys are found by both halves, also if other keys share one half; an index grows by parts."""

from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from mclip_kit.features import index, shards
from mclip_kit.features.index import BITS, find, in_key_order
from mclip_kit.features.job import first_of_each
from mclip_kit.features.shards import Shard
from tests.features.tables import NAMES, Tower, assert_right, filled, keys_of, table_in, whole_shards


def test_keys_that_share_a_half_are_different() -> None:
    keys_N2 = np.array([[5, 1], [5, 2], [5, 3], [7, 1], [2**63, 9]], "<u8")
    columns = keys_N2[:, 0].copy(), keys_N2[:, 1].copy(), np.array([0, 1, 1 << BITS, 2, 3], "<u8")
    wanted_N2 = np.array([[2**63, 9], [5, 3], [5, 1], [5, 4], [6, 1], [2**63 + 1, 9], [7, 1], [5, 2], [5, 3]], "<u8")
    assert find(columns, wanted_N2).tolist() == [3, 1 << BITS, 0, -1, -1, -1, 2, 1, 1 << BITS]


def test_a_key_of_a_shard_that_is_gone_is_found_in_another() -> None:
    keys_N2 = np.array([[5, 1], [5, 1], [5, 2]], "<u8")
    columns = keys_N2[:, 0].copy(), keys_N2[:, 1].copy(), np.array([0, 1 << BITS, 1], "<u8")
    assert find(columns, keys_N2, np.array([-1, 7])).tolist() == [7 << BITS, 7 << BITS, -1]


def test_an_empty_index_has_nothing() -> None:
    empty = np.zeros(0, "<u8")
    assert find((empty, empty, empty), np.array([[1, 2]], "<u8")).tolist() == [-1]
    assert find((empty, empty, empty), np.zeros((0, 2), "<u8")).tolist() == []


def test_pieces_in_key_order_are_the_positions_sorted_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    keys_N2 = draw.integers(0, 2**64, (1500, 2), np.uint64)
    keys_N2[600:900] = keys_N2[draw.integers(0, 600, 300)]
    keys_N2[0], keys_N2[1] = 0, 2**64 - 1
    some = np.flatnonzero(draw.random(1500) < 0.5)
    first = first_of_each(keys_N2, some)
    assert first.tolist() == sorted({keys_N2[i].tobytes(): i for i in some[::-1].tolist()}.values())
    for size in (1 << 18, 300, 7):
        monkeypatch.setattr(index, "PIECE", size)
        for positions in (None, some, some[:0]):
            pieces = list(in_key_order(keys_N2, positions))
            chosen = np.arange(1500) if positions is None else positions
            expected = chosen[np.argsort(keys_N2[chosen, 0], kind="stable")]
            assert np.concatenate(pieces).tolist() == expected.tolist()
            assert max(map(len, pieces)) <= 2 * size + 30
        assert first_of_each(keys_N2, some).tolist() == first.tolist()


def test_an_index_does_not_depend_on_the_size_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, found = list(range(500)), []
    for size in (1 << 18, 60, 7):
        monkeypatch.setattr(index, "PIECE", size)
        monkeypatch.setattr(shards, "PIECE", size)
        table, rows = filled(tmp_path / str(size), Tower(names, sized=False), rows=90)
        assert_right(table, rows, names)
        (path,) = (tmp_path / str(size)).glob("index-*.bin")
        found.append((path.name, path.read_bytes()))
    assert found[0] == found[1] == found[2]


def test_an_index_grows_by_few_parts_and_writes_a_row_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SMALL", 0)
    written: list[int] = []
    write = index._write

    def logged(path: Path, shards: list[Shard]) -> None:
        written.append(sum(shard.rows for shard in shards))
        write(path, shards)

    monkeypatch.setattr(index, "_write", logged)
    table = table_in(tmp_path)
    for start in range(0, 320, 10):
        some = list(range(start, start + 10))
        assert_right(table, table.fill(keys_of(some), Tower(some).job()), some)
        assert len(list(tmp_path.glob("index-*.bin"))) <= 6  # of 10, 20, 40, ... rows
    assert sum(written) <= 320 * 6
    names = list(range(320))
    assert_right(table, table.find(keys_of(names)), names)
    idle = Tower(names)
    table, rows = filled(tmp_path, idle)
    assert idle.count == 0
    assert_right(table, rows, names)


def test_an_index_stays_when_a_shard_goes_and_comes_back(tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES, sized=False))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("index-*.bin")}
    rmtree(whole_shards(tmp_path)[1])
    assert (table_in(tmp_path).find(keys_of(NAMES)) < 0).sum() == 20
    again = Tower(NAMES, sized=False)
    table, rows = filled(tmp_path, again)
    assert again.count == 20
    assert_right(table, rows, NAMES)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("index-*.bin")} == before
