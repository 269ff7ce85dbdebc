"""Damaged shards and indexes are noticed, removed and made again."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.shard_writer import remove_damaged
from tests.features.tables import (
    NAMES,
    WIDTH,
    Tower,
    assert_right,
    content,
    empty,
    filled,
    flip,
    halve,
    whole_shards,
)

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
    logged: list[str] = []
    again = Tower(NAMES, True)
    table, rows = filled(tmp_path / "t", again, "int8", rows=90, log=logged.append)
    assert_right(table, rows, NAMES, True, "int8")
    assert content(tmp_path / "t") == before
    assert any(str(victim) in line and "damaged" in line for line in logged)
    assert again.count == of_victim


def test_a_flipped_byte_of_a_description_is_noticed(tmp_path: Path) -> None:
    names = list(range(30))
    filled(tmp_path, Tower(names), rows=1000)
    (shard,) = whole_shards(tmp_path)
    before = (shard / "shard.json").read_bytes()
    for at in range(before.index(b"tool") - 3):  # which version wrote it decides nothing
        (shard / "shard.json").write_bytes(before)
        flip(shard / "shard.json", at)
        idle, logged = Tower(names), list[str]()
        table, rows = filled(tmp_path, idle, rows=1000, log=logged.append)
        assert_right(table, rows, names)
        damaged = any("damaged" in line for line in logged)
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
    idle, logged = Tower(NAMES), list[str]()
    table, rows = filled(tmp_path, idle, log=logged.append)
    assert_right(table, rows, NAMES)
    assert idle.count == 0
    assert content(tmp_path) == before
    assert damage in ("cut", "empty", "missing") or any(str(index) in line for line in logged)


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


def test_keys_of_sound_shards_stay_right(tmp_path: Path) -> None:
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


def test_an_unreadable_input_stays_unreadable_after_damage(tmp_path: Path) -> None:
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
