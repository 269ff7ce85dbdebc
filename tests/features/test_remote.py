"""A feature cache in object storage: what is brought, sent, taken from other machines, and healed."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.data.row_files import ColumnWriter, discard, once, open_folder
from mclip_kit.errors import DataError, StorageError
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.table import Table
from mclip_kit.storage import place
from mclip_kit.storage.copies import SIZE
from mclip_kit.urls import root
from tests.features.tables import NAMES, SHAPES, WIDTH, Tower, assert_right, features, filled, flip, keys_of, table_in
from tests.storage.buckets import Machine, count_brought, in_memory, values_brought

URL = "memory://bucket/features/made-up"
REMOTE = "/bucket/features/made-up"
WIDER = 32  # times the width of the made-up tower


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Machine]]:
    with in_memory(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture(autouse=True)
def bucket(places: tuple[Any, Machine]) -> Any:
    """An empty object storage in memory."""
    return places[0]


@pytest.fixture
def machine(places: tuple[Any, Machine]) -> Machine:
    """Go to a machine, by its name."""
    return places[1]


@pytest.fixture
def brought(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object is brought."""
    return count_brought(bucket, monkeypatch)


def shards(bucket: Any) -> list[str]:
    return sorted(path.split("/")[-2] for path in bucket.find(REMOTE) if path.endswith("/shard.json"))


@pytest.mark.parametrize(("ragged", "dtype"), SHAPES)
def test_another_machine_reads_what_one_has_filled(
    ragged: bool, dtype: Any, bucket: Any, machine: Machine, brought: Counter[str]
) -> None:
    _, rows = filled(place(URL), Tower(NAMES, ragged), dtype)
    assert len(shards(bucket)) > 3
    assert not [path for path in bucket.find("/") if ".part" in path or "/." in path]
    machine("second")
    tower = Tower(NAMES, ragged)
    table, rows = filled(place(URL), tower, dtype)
    assert tower.count == 0
    assert brought  # descriptions, keys, the index ...
    assert not values_brought(brought)
    some = rows[:1]
    assert_right(table, some, NAMES[:1], ragged, dtype)
    assert len(values_brought(brought)) == 1  # the shard of that row alone
    assert_right(table, rows, NAMES, ragged, dtype)
    assert sorted(values_brought(brought)) == shards(bucket)
    assert set(brought.values()) == {1}


def test_machines_fill_a_table_together(bucket: Any, machine: Machine) -> None:
    filled(place(URL), Tower(NAMES[:50]))
    machine("second")
    tower = Tower(NAMES)
    filled(place(URL), tower)
    assert tower.count == 50
    machine("first")
    tower = Tower(NAMES)
    table, rows = filled(place(URL), tower)
    assert tower.count == 0
    assert_right(table, rows, NAMES)


def test_the_shard_of_the_faster_machine_is_taken(bucket: Any, machine: Machine, brought: Counter[str]) -> None:
    """Both compute at the same time: the second finds the shards of the first when it has computed its own."""
    open_now = table_in(place(URL))  # empty
    machine("second")
    filled(place(URL), Tower(NAMES))
    before = {path: bucket.cat(path) for path in bucket.find(REMOTE)}
    machine("first")
    tower = Tower(NAMES)
    rows = open_now.fill(keys_of(NAMES), tower.job())
    assert tower.count == 0
    assert_right(open_now, rows, NAMES)
    assert {path: bucket.cat(path) for path in bucket.find(REMOTE)} == before


def test_a_shard_that_is_sent_by_another_machine_now_is_neither_read_nor_removed(bucket: Any, machine: Machine) -> None:
    filled(place(URL), Tower(NAMES[:20]), rows=100)
    (name,) = shards(bucket)
    whole = {path: bucket.cat(path) for path in bucket.find(f"{REMOTE}/{name}")}
    bucket.rm([f"{REMOTE}/{name}/shard.json", f"{REMOTE}/{name}/keys.bin"])
    machine("second")
    tower = Tower(NAMES[:20])
    table, rows = filled(place(URL), tower, rows=100)
    assert tower.count == 20
    assert_right(table, rows, NAMES[:20])
    assert {path: bucket.cat(path) for path in bucket.find(f"{REMOTE}/{name}")}.keys() == whole.keys()


def test_a_shard_that_could_not_be_sent_is_sent_later(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ConnectionError("the network is down")

    table = table_in(place(URL), rows=100)
    with monkeypatch.context() as broken:
        broken.setattr(type(bucket), "put_file", fails)
        with pytest.raises(StorageError, match=rf"^{URL}.*cannot be written \(the network is down\); check"):
            table.fill(keys_of(NAMES), Tower(NAMES).job())
    assert not shards(bucket)
    table_in(place(URL), rows=100)
    assert len(shards(bucket)) == 1


def test_values_make_room_for_others_and_are_brought_again(
    bucket: Any, machine: Machine, brought: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is larger than the room for its copies, read and filled."""
    wide_filled()
    found = {path: len(bucket.cat(path)) for path in bucket.find(REMOTE)}
    large = [size for path, size in found.items() if path.endswith("/values.bin")]
    size = sum(found.values()) - sum(large) + 2 * large[0]
    assert len(large) == 5

    def taken() -> int:
        return sum(path.stat().st_size for path in place(URL).rglob("*") if path.is_file())

    monkeypatch.setenv(SIZE, str(size / 1e9))
    machine("second")
    table, rows = wide_filled()
    for row in np.random.default_rng(0).permutation(len(NAMES)):
        np.testing.assert_array_equal(table.take(rows[row : row + 1]), np.tile(features(NAMES[row], False), WIDER))
        assert taken() <= size
    assert min(values_brought(brought).values()) > 1
    machine("third")
    bucket.rm(REMOTE, recursive=True)
    wide_filled()
    assert {path: len(bucket.cat(path)) for path in bucket.find(REMOTE)} == found
    assert taken() <= size


def wide_filled() -> tuple[Table, np.ndarray]:
    """A table whose values are much larger than all that is small."""
    item_format = ItemFormat(WIDTH * WIDER, "fp32")
    table = Table(place(URL), item_format, "wide features", 20 * item_format.item_bytes, lambda line: None)
    tower = Tower(NAMES, change=lambda values_ND: np.tile(values_ND, WIDER))
    return table, table.fill(keys_of(NAMES), tower.job())


def test_a_damaged_copy_is_brought_again(bucket: Any, machine: Machine) -> None:
    table, rows = filled(place(URL), Tower(NAMES[:20]), rows=100)
    (copy,) = place(URL).glob("*/values.bin")
    flip(copy)
    with pytest.raises(DataError, match=rf"^{URL}/\w+: damaged: .* as it was read; all of its checksums are right now"):
        table.take(rows)
    assert_right(table, rows, NAMES[:20])
    assert len(shards(bucket)) == 1


@pytest.mark.parametrize("how", ["another content", "gone"])
def test_a_damaged_shard_is_removed_there_and_computed_again(how: str, bucket: Any, machine: Machine) -> None:
    filled(place(URL), Tower(NAMES))
    name = shards(bucket)[0]
    path = f"{REMOTE}/{name}/values.bin"
    sound = bucket.cat(path)
    if how == "gone":
        bucket.rm(path)
    else:
        bucket.pipe_file(path, bytes(len(sound)))
    machine("second")
    table, rows = filled(place(URL), Tower(NAMES))
    with pytest.raises(DataError, match=rf"^{URL}/{name}: damaged: .* is computed again by the next run"):
        table.take(rows)
    assert name not in shards(bucket)
    tower = Tower(NAMES)
    table, rows = filled(place(URL), tower)
    assert tower.count == 20
    assert bucket.cat(path) == sound
    assert_right(table, rows, NAMES)


def test_a_damaged_index_is_written_again(bucket: Any, machine: Machine) -> None:
    filled(place(URL), Tower(NAMES))
    (index,) = bucket.glob(f"{REMOTE}/index-*")
    sound = bucket.cat(index)
    bucket.pipe_file(index, sound[:40] + bytes([sound[40] ^ 1]) + sound[41:])
    machine("second")
    tower = Tower(NAMES)
    table, rows = filled(place(URL), tower)
    assert_right(table, rows, NAMES)
    assert tower.count == 0
    assert bucket.cat(index) == sound


def test_features_that_another_machine_prunes_end_the_run_with_one_line(bucket: Any, machine: Machine) -> None:
    filled(place(URL), Tower(NAMES))
    machine("second")
    table, rows = filled(place(URL), Tower(NAMES))
    bucket.rm(REMOTE, recursive=True)
    with pytest.raises(DataError, match=rf"^{URL}/\w+: damaged: values.bin is missing; it is removed, and"):
        table.take(rows)


def test_columns_are_written_once_for_all_machines(bucket: Any, machine: Machine) -> None:
    writes: list[Path] = []

    def write(part: Path) -> None:
        writes.append(part)
        with ColumnWriter(part, {"languages": ["en"]}) as writer:
            writer.add("length", np.arange(5))

    def lengths() -> list[int]:
        return list(open_folder(once(place("memory://bucket/features/rows-1"), write))[1]["length"])

    assert lengths() == [0, 1, 2, 3, 4]
    machine("second")
    assert lengths() == [0, 1, 2, 3, 4]
    assert len(writes) == 1
    bucket.rm("/bucket/features/rows-1/columns.json")  # as while another machine sends it
    machine("third")
    assert lengths() == [0, 1, 2, 3, 4]
    assert len(writes) == 2
    discard(place("memory://bucket/features/rows-1"))
    assert not bucket.find("/bucket/features/rows-1")


def test_the_cache_is_listed_verified_and_pruned_by_its_url(
    bucket: Any, machine: Machine, brought: Counter[str]
) -> None:
    from mclip_kit.features.cache import FeatureCache

    cache = FeatureCache(place("memory://bucket/features"), "fp32")
    facts = {"named": "a tower", "weights": "0", "precision": "float32"}
    table: Table = cache.table("image", "image", 8, lambda: facts)
    table.fill(keys_of(NAMES), Tower(NAMES).job())
    cache.once("rows-0", lambda part: _rows(part))
    machine("second")

    def say(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["cache", *words, "--root", "memory://bucket/features"])
        assert result.exit_code == code, result.output
        return result.output

    lines = say("ls").splitlines()
    assert [line.split()[1:3] for line in lines[:2]] == [["100", "rows"], ["7", "rows"]]
    assert lines[2].startswith("memory://bucket/features: 2 tables, 0.0")
    assert not [name for name in brought if name.endswith(".bin")]
    assert "2 tables read, 0 damaged" in say("verify")
    (path,) = bucket.glob("/bucket/features/image-*/*/values.bin")
    bucket.pipe_file(path, bytes(len(bucket.cat(path))))
    machine("third")
    assert f"memory:/{path.rpartition('/')[0]}: damaged and removed" in say("verify", code=1)
    assert not bucket.glob("/bucket/features/image-*/*/shard.json")
    say("prune", "--days", "0")
    assert not bucket.find("/bucket")


def _rows(part: Path) -> None:
    with ColumnWriter(part, {}) as writer:
        writer.add("length", np.zeros(7, np.int32))


def test_a_machine_without_its_copies_starts_again(bucket: Any, machine: Machine) -> None:
    table, rows = filled(place(URL), Tower(NAMES))
    shutil.rmtree(root())
    assert_right(table, rows, NAMES)
