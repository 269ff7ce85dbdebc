"""Features that are larger than the room for their copies: what is brought, with a shuffle window and without one."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclip_kit.data.batching import Plan
from mclip_kit.errors import StorageError
from mclip_kit.features.ahead import bring_ahead
from mclip_kit.features.extract import Features
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.table import Table
from mclip_kit.storage import place
from mclip_kit.storage.copies import SIZE
from tests.features.tables import WIDTH, Tower, features, keys_of
from tests.storage.buckets import count_brought, in_memory, values_brought

URL, REMOTE = "memory://bucket/features/wide", "/bucket/features/wide"
WIDER = 32  # times the width of the made-up tower, so that values are most of a table
ROWS, SHARD, WINDOW, BATCH = 300, 7, 60, 12  # a block is 15 rows; two windows need at most 24 of 43 shards


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of a table."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        in_memory(tmp_path_factory.mktemp("stored"), monkeypatch) as (bucket, _),
    ):
        wide()
        return {path: bucket.cat(path) for path in bucket.find(REMOTE)}


@pytest.fixture
def bucket(stored: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object storage that has the table; copies may take six tenths of it."""
    with in_memory(tmp_path, monkeypatch) as (bucket, _):
        bucket.pipe(stored)
        monkeypatch.setenv(SIZE, str(sum(map(len, stored.values())) * 0.6 / 1e9))
        yield bucket


def taken() -> int:
    return sum(path.stat().st_size for path in place(URL).rglob("*") if path.is_file())


def wide() -> Features:
    item_format = ItemFormat(WIDTH * WIDER, "fp32")
    table = Table(place(URL), item_format, "wide features", SHARD * item_format.item_bytes, lambda line: None)
    tower = Tower(range(ROWS), sized=False, change=lambda values_ND: np.tile(values_ND, WIDER))
    return Features(table, table.fill(keys_of(range(ROWS)), tower.job()))


def plan(window: int | None = WINDOW) -> Plan:
    return Plan(np.arange(ROWS) % 3, np.ones(ROWS, int), BATCH, window=window)


def check(found: Features, rows: np.ndarray) -> None:
    expected_ND = np.concatenate([np.tile(features(row, False), WIDER) for row in rows.tolist()])
    np.testing.assert_array_equal(found.take(rows).numpy(), expected_ND)


def test_with_a_window_a_shard_is_brought_about_once_an_epoch(
    bucket: Any, stored: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, brought, seen = wide(), count_brought(bucket, monkeypatch), 0
    for rows in bring_ahead(plan().windows(0), 0, found.files, pytest.fail):
        check(found, rows)
        seen += len(rows)
    assert seen == ROWS
    assert taken() <= sum(map(len, stored.values())) * 0.6
    counts = values_brought(brought)
    assert len(counts) == -(-ROWS // SHARD)
    assert np.mean(list(counts.values())) < 1.7  # a block of 15 rows has 3 shards of 7, the outer ones in part


def test_without_a_window_every_batch_brings_many(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, brought = wide(), count_brought(bucket, monkeypatch)
    for rows in plan(None).epoch(0):
        check(found, rows)
    assert np.mean(list(values_brought(brought).values())) > 2.5  # at a fifth more: see benchmarks/stream_features.py


def test_what_a_window_reads_is_there_before_its_first_batch_and_of_later_ones_only_the_next(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, brought = wide(), count_brought(bucket, monkeypatch)
    windows = plan().windows(0)
    batches = bring_ahead(windows, 0, found.files, pytest.fail)
    of_window = [{path.parent.name for path in found.files(np.concatenate(window))} for window in windows]
    for number in range(3):
        for _ in windows[number]:
            next(batches)
            here = {path.parent.name for path in place(URL).glob("*/values.bin")}
            assert here >= of_window[number]
            assert set(values_brought(brought)) <= set().union(*of_window[: number + 2])
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_the_order_is_that_of_the_plan_from_any_batch_on() -> None:
    windows, whole = plan().windows(1), plan().epoch(1)
    for start in (0, 1, 7, len(whole) - 1, len(whole)):
        batches = list(bring_ahead(windows, start, lambda rows: [], lambda line: None))
        assert [rows.tolist() for rows in batches] == [rows.tolist() for rows in whole[start:]]


def test_a_file_that_cannot_be_brought_ends_the_training_thread_with_one_line(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, windows = wide(), plan().windows(0)
    first, second = ({path for path in found.files(np.concatenate(window))} for window in windows[:2])
    lost = next(path for path in sorted(second - first) if path.name == "values.bin")
    get = type(bucket).get_file

    def fails(self: Any, remote: str, local: str, **options: Any) -> None:
        if f"{lost.parent.name}/{lost.name}" in remote:
            raise ConnectionError("the network is down")
        get(self, remote, local, **options)

    monkeypatch.setattr(type(bucket), "get_file", fails)
    batches = bring_ahead(windows, 0, found.files, pytest.fail)
    for _ in windows[0]:
        check(found, next(batches))
    with pytest.raises(
        StorageError, match=rf"^{URL}/{lost.parent.name}/values.bin: cannot be read \(the network is down"
    ):
        next(batches)


def test_windows_that_do_not_fit_are_said_once(bucket: Any) -> None:
    found, lines = wide(), list[str]()
    for rows in bring_ahead(plan(150).windows(0), 0, found.files, lines.append):
        check(found, rows)
    assert lines == [
        "shuffle_window: two windows do not fit into MCLIP_KIT_STORAGE_SIZE, so copies are brought more than once; "
        "lower the one or raise the other"
    ]
