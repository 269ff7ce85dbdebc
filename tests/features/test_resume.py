"""A fill that is killed or fails at any moment resumes after the last sound block."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.errors import DiskError
from mclip_kit.features.item_format import Dtype, ItemFormat
from mclip_kit.features.shard_writer import ShardWriter
from mclip_kit.features.shards import BLOCK
from tests.features.tables import (
    NAMES,
    SHAPES,
    WIDTH,
    Tower,
    assert_right,
    content,
    dies_at,
    features,
    filled,
    flip,
    keys_of,
    killed_after,
)


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
def test_killed_before_or_after_every_step_that_counts(step: str, after: bool, tmp_path: Path) -> None:
    """Before and after each rename, flush and cut of a file: the process dies in its first, its second, ..."""
    names, bad = list(range(60)), [3, 41]
    filled(tmp_path / "whole", Tower(names, bad=bad), rows=30)

    def fill_and_die(at: int) -> None:
        dies_at(step, at, after)
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
    names = list(range(100))
    killed = Tower(names, sized=False, budget=5)

    def die(values_ND: np.ndarray) -> np.ndarray:
        if len(killed.seen) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return values_ND

    killed.change = die
    assert killed_after(60, lambda: filled(tmp_path / "cut", killed, rows=1000) and None) == -signal.SIGKILL
    rest = Tower(names, sized=False, budget=5)
    table, rows = filled(tmp_path / "cut", rest, rows=1000)
    assert rest.count == 100 - 12 * 5
    assert_right(table, rows, names)


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
def test_an_unfinished_shard_with_damage_is_continued_rightly(tear: str, ragged: bool, tmp_path: Path) -> None:
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


def test_an_unfinished_shard_is_continued_with_batches_of_another_size(tmp_path: Path) -> None:
    half_written(tmp_path)
    rest = Tower(NAMES, True, budget=7)
    table, rows = filled(tmp_path, rest, "int8", rows=10**6)
    assert rest.count < len(NAMES)
    assert_right(table, rows, NAMES, True, "int8")
    idle = Tower(NAMES, True)
    filled(tmp_path, idle, "int8", rows=10**6)
    assert idle.count == 0


def test_a_block_that_was_written_twice_is_not_taken_for_the_next(tmp_path: Path) -> None:
    """As two writers leave it on a file system without locks."""
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
    with pytest.raises(DiskError, match=r"shard: cannot be written: No space left on device"):
        writer.append(1, features(1, False))
    writer.close()
