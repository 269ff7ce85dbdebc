"""Large tables are not verified beforehand: a damaged row is noticed when it is read, and the advice then works."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.errors import DataError
from mclip_kit.features import table as features_table
from tests import tiny
from tests.features.tables import (
    NAMES,
    SHAPES,
    Tower,
    assert_right,
    content,
    empty,
    filled,
    flip,
    halve,
    keys_of,
    table_in,
    whole_shards,
)
from tests.features.test_table import bytes_read


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table counts as a large one."""
    monkeypatch.setattr(features_table, "VERIFIED_FIRST", -1)


@pytest.mark.parametrize(
    ("name", "damage", "found"),
    [
        *((name, flip, True) for name in ("values.bin", "scales.bin", "sums.bin", "offsets.bin")),
        *((name, lambda path: flip(path, -1), True) for name in ("values.bin", "scales.bin", "sums.bin")),
        *((name, flip, False) for name in ("keys.bin", "blocks.bin")),  # nothing reads them here
    ],
)
def test_a_damaged_row_ends_the_run_and_is_computed_by_the_next(
    name: str, damage: Callable[[Path], None], found: bool, tmp_path: Path
) -> None:
    filled(tmp_path, Tower(NAMES, True), "int8", rows=90)
    before, victim = content(tmp_path), whole_shards(tmp_path)[1]
    damage(victim / name)
    idle = Tower(NAMES, True)
    table, rows = filled(tmp_path, idle, "int8", rows=90)
    assert idle.count == 0
    if not found:
        assert_right(table, rows, NAMES, True, "int8")
        return
    with pytest.raises(DataError) as error:
        table.take(rows)
    assert str(error.value).startswith(f"{victim}: damaged: ")
    assert str(error.value).endswith("it is removed, and is computed again by the next run: run again, or use --resume")
    assert not victim.exists()
    with pytest.raises(DataError, match="removed during the run"):
        table.take(rows)
    again = Tower(NAMES, True)
    table, rows = filled(tmp_path, again, "int8", rows=90)
    assert 0 < again.count < len(NAMES)
    assert_right(table, rows, NAMES, True, "int8")
    assert content(tmp_path) == before


@pytest.mark.parametrize(("ragged", "dtype"), SHAPES)
def test_every_flipped_byte_of_the_values_is_noticed(ragged: bool, dtype: str, tmp_path: Path) -> None:
    names = NAMES[:12]
    filled(tmp_path, Tower(names, ragged), dtype, rows=1000)  # type: ignore[arg-type]
    (shard,) = whole_shards(tmp_path)
    sound = (shard / "values.bin").read_bytes()
    table = table_in(tmp_path, dtype, rows=1000)  # type: ignore[arg-type]
    rows = table.find(keys_of(names))
    for at in range(0, len(sound), 7):
        flip(shard / "values.bin", at)
        with pytest.raises(DataError, match=r"a row has another content"):
            table.take(rows)
        shard.mkdir()  # it was removed
        filled(tmp_path / "same", Tower(names, ragged), dtype, rows=1000)  # type: ignore[arg-type]
        (same,) = whole_shards(tmp_path / "same")
        for path in same.iterdir():
            (shard / path.name).write_bytes(path.read_bytes())
    assert_right(table, rows, names, ragged, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["values.bin", "scales.bin", "sums.bin", "offsets.bin", "unreadable.bin"])
@pytest.mark.parametrize("damage", [halve, empty])
def test_a_file_that_is_cut_while_the_table_is_open_is_noticed(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    table, rows = filled(tmp_path, Tower(NAMES, True), "int8", rows=90)
    damage(whole_shards(tmp_path)[1] / name)
    with pytest.raises(DataError, match=r"damaged: .*it is removed"):
        table.unreadable(rows) if name == "unreadable.bin" else table.take(rows)
    table, rows = filled(tmp_path, Tower(NAMES, True), "int8", rows=90)
    assert_right(table, rows, NAMES, True, "int8")


def test_damaged_flags_of_unreadable_inputs_are_noticed(tmp_path: Path) -> None:
    tower = Tower(NAMES, bad=[NAMES[3]], sized=False)
    table, rows = filled(tmp_path, tower)
    flip(whole_shards(tmp_path)[2] / "unreadable.bin", 4)
    with pytest.raises(DataError, match=r"unreadable\.bin has another checksum.*is removed"):
        table.unreadable(rows)
    table, rows = filled(tmp_path, tower)
    assert list(np.flatnonzero(table.unreadable(rows))) == [3]


@pytest.mark.parametrize("damage", [halve, Path.unlink])
def test_a_file_of_another_length_is_noticed_when_the_table_is_opened(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    filled(tmp_path, Tower(NAMES))
    before = content(tmp_path)
    damage(whole_shards(tmp_path)[0] / "values.bin")
    table, rows = filled(tmp_path, Tower(NAMES))
    assert_right(table, rows, NAMES)
    assert content(tmp_path) == before


def test_damaged_keys_are_noticed_when_the_index_is_written(tmp_path: Path) -> None:
    filled(tmp_path, Tower(NAMES))
    before = content(tmp_path)
    (index,) = tmp_path.glob("index-*.bin")
    index.unlink()
    flip(whole_shards(tmp_path)[1] / "keys.bin", 40)
    again = Tower(NAMES)
    table, rows = filled(tmp_path, again)
    assert again.count < len(NAMES)
    assert_right(table, rows, NAMES)
    assert content(tmp_path) == before


def test_a_shard_that_is_sound_when_it_is_read_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an error of the memory, or of a network."""
    table, rows = filled(tmp_path, Tower(NAMES))
    before, victim = content(tmp_path), whole_shards(tmp_path)[0]
    number = next(n for n, shard in table._shards.items() if shard.folder == victim)
    flip(victim / "values.bin")
    read = table._shards[number].take

    def repair(*arguments: np.ndarray) -> np.ndarray:
        try:
            return read(*arguments)
        finally:
            flip(victim / "values.bin")

    monkeypatch.setattr(table._shards[number], "take", repair)
    with pytest.raises(DataError, match="all of its checksums are right now: run again"):
        table.take(rows)
    assert content(tmp_path) == before


def test_a_fill_with_everything_there_reads_no_values(tmp_path: Path) -> None:
    names = list(range(3000))
    tower = Tower(names, True, budget=500)
    filled(tmp_path, tower, "fp32", rows=10**6)
    size = sum(path.stat().st_size for path in tmp_path.rglob("values.bin"))
    before = bytes_read()
    table, rows = filled(tmp_path, tower, "fp32", rows=10**6)
    assert bytes_read() - before < size / 2  # the index
    assert_right(table, rows, names, True)


def test_a_run_ends_in_one_line_and_resumes(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCLIP_KIT_CACHE", raising=False)
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = tree["encoder"]["weights"] = "random"
    tree |= {"projector": {"kind": "transformer", "layers": 1, "pool": "eos"}, "clip_projector": "linear"}
    tree["stages"] = [tree["stages"][2] | {"train": ["projector", "clip_projector"]}]
    words = [str(tiny.write_recipe(tree, tmp_path / "tiny.yaml")), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(cli, ["extract", *words]).exit_code == 0
    (values,) = (tmp_path / "features").glob("tokens-*/*/values.bin")
    flip(values, values.stat().st_size // 2)
    ended = CliRunner().invoke(cli, ["train", *words])
    assert ended.exit_code == 2
    assert ended.output.splitlines()[-1].startswith(f"Error: {values.parent}: damaged: ")
    assert ended.output.splitlines()[-1].endswith("run again, or use --resume")
    resumed = CliRunner().invoke(cli, ["train", *words, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert CliRunner().invoke(cli, ["cache", "verify", "--root", str(tmp_path / "features")]).exit_code == 0
