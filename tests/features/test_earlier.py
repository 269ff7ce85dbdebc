"""Caches of earlier versions: shards without a checksum a row, and an index in one piece."""

import hashlib
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.errors import DataError
from mclip_kit.features import table as features_table
from mclip_kit.features.shards import BLOCK
from tests.features.tables import NAMES, SHAPES, Tower, assert_right, content, filled, flip, whole_shards


def as_earlier(folder: Path) -> None:
    """Write a table's shards and index as versions before sums.bin did."""
    keys, places = [], []
    for number, shard in enumerate(whole_shards(folder)):
        facts = json.loads((shard / "shard.json").read_text())
        blocks, contents = np.fromfile(shard / "blocks.bin", BLOCK), {}
        rows = items = 0
        for name in ("unreadable.bin", "values.bin", "scales.bin"):
            if (shard / name).exists():
                contents[name] = (shard / name).read_bytes()
        for block in blocks:
            checksum, counts = rows, {"unreadable.bin": (rows, int(block["rows"]), facts["rows"])}
            for name, held in contents.items():
                start, count, whole = counts.get(name, (items, int(block["items"]), facts["items"]))
                size = len(held) // whole
                checksum = zlib.crc32(held[start * size : (start + count) * size], checksum)
            block["checksum"] = checksum
            rows, items = rows + int(block["rows"]), items + int(block["items"])
        blocks.tofile(shard / "blocks.bin")
        (shard / "sums.bin").unlink()
        head = (shard / "keys.bin").read_bytes() + (shard / "offsets.bin").read_bytes()
        del facts["checksums"], facts["ragged"]
        (shard / "shard.json").write_text(json.dumps(facts | {"checksum": zlib.crc32(head)}))
        keys.append(np.fromfile(shard / "keys.bin", "<u8").reshape(-1, 2))
        places.append((number << 32) + np.arange(facts["rows"]))
    for path in folder.glob("index-*.bin"):
        path.unlink()
    keys_N2, place_N = np.concatenate(keys), np.concatenate(places)
    order = np.argsort(keys_N2[:, 0], kind="stable")
    columns = b"".join(column[order].tobytes() for column in (keys_N2[:, 0], keys_N2[:, 1], place_N))
    names = " ".join(shard.name for shard in whole_shards(folder))
    name = f"index-{hashlib.blake2b(names.encode(), digest_size=8).hexdigest()}.bin"
    (folder / name).write_bytes(columns + zlib.crc32(columns).to_bytes(8, "little"))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("ragged", "dtype"), SHAPES)
def test_an_earlier_table_is_read_as_it_is_and_grows(
    ragged: bool, dtype: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_table, "VERIFIED_FIRST", -1 if large else 1 << 30)
    bad = [] if ragged else [NAMES[5]]
    filled(tmp_path, Tower(NAMES, ragged, bad=bad), dtype, rows=90)  # type: ignore[arg-type]
    as_earlier(tmp_path)
    before, idle = content(tmp_path), Tower(NAMES, ragged, bad=bad)
    table, rows = filled(tmp_path, idle, dtype, rows=90)  # type: ignore[arg-type]
    good = np.setdiff1d(np.arange(100), [5] if bad else [])
    assert_right(table, rows[good], [NAMES[i] for i in good], ragged, dtype)  # type: ignore[arg-type]
    assert list(np.flatnonzero(table.unreadable(rows))) == ([5] if bad else [])
    assert idle.count == 0
    assert content(tmp_path) == before
    more = Tower([*NAMES, *range(30)], ragged, bad=bad)
    table, rows = filled(tmp_path, more, dtype, rows=90)  # type: ignore[arg-type]
    assert more.count == 30
    assert_right(table, rows[100:], list(range(30)), ragged, dtype)  # type: ignore[arg-type]
    assert_right(table, rows[good], [NAMES[i] for i in good], ragged, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["values.bin", "scales.bin", "keys.bin", "offsets.bin", "blocks.bin"])
def test_damage_of_an_earlier_shard_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "t", Tower(NAMES, True), "int8", rows=90)
    as_earlier(tmp_path / "t")
    shutil.copytree(tmp_path / "t", tmp_path / "large")
    for folder in (tmp_path / "t", tmp_path / "large"):
        flip(whole_shards(folder)[1] / name, 50)
    again = Tower(NAMES, True)
    table, rows = filled(tmp_path / "t", again, "int8", rows=90)
    assert 0 < again.count < len(NAMES)
    assert_right(table, rows, NAMES, True, "int8")
    monkeypatch.setattr(features_table, "VERIFIED_FIRST", -1)
    table, rows = filled(tmp_path / "large", Tower(NAMES, True), "int8", rows=90)
    with pytest.raises(DataError, match="a checksum is wrong; it is removed"):
        table.take(rows)
    table, rows = filled(tmp_path / "large", Tower(NAMES, True), "int8", rows=90)
    assert_right(table, rows, NAMES, True, "int8")


@pytest.mark.parametrize("at", [7, 8 * 150 + 7, 8 * 250 + 7, -1])
def test_damage_of_an_earlier_index_is_noticed(at: int, tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES))
    as_earlier(tmp_path)
    (index,) = tmp_path.glob("index-*.bin")
    flip(index, at)
    idle, logged = Tower(NAMES), list[str]()
    table, rows = filled(tmp_path, idle, log=logged.append)
    assert_right(table, rows, NAMES)
    assert idle.count == 0
    assert logged == [f"{index}: damaged; it is written again"]
