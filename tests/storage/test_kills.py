"""A process is killed while it writes into object storage: what has its name here is sent later."""

import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from mclip_kit.files import new_folder, write_text
from mclip_kit.storage import claims, copies, exists, fetch, objects, place
from mclip_kit.train import checkpoint
from tests.features.tables import NAMES, Tower, filled, in_child, table_in, whole_shards
from tests.storage.buckets import new_machine


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bucket that processes share: a folder, under local://."""
    system = LocalFileSystem(auto_mkdir=True, skip_instance_cache=True)
    monkeypatch.setattr(objects, "_system", lambda scheme, process: system)
    monkeypatch.setattr(claims, "SETTLE", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bucket").mkdir()
    new_machine(tmp_path / "copies", monkeypatch)
    return tmp_path / "bucket"


def dies_at(moment: int) -> None:
    """This process dies at that moment: before or after a file gets its name, or an object is written."""
    left = [moment]

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            _die_at_zero(left)
            found = real(*arguments, **options)
            _die_at_zero(left)
            return found

        return step

    os.replace, os.rename = deadly(os.replace), deadly(os.rename)
    LocalFileSystem.put_file = deadly(LocalFileSystem.put_file)  # type: ignore[method-assign]


def run_until(moment: int, task: Callable[[], Any]) -> bool:
    """Run a task in a process that dies at that moment; whether it ended before."""
    process = in_child(lambda: (dies_at(moment), task()))  # type: ignore[func-returns-value, arg-type, return-value]
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode == 0)


def _die_at_zero(left: list[int]) -> None:
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def write_file(folder: Path) -> None:
    write_text(folder / "a" / "last", "new")


def write_folder(folder: Path) -> None:
    with new_folder(folder / "model") as part:
        for name in ("weights", "config"):
            (part / name).write_text("new")


def make_room(folder: Path) -> None:
    checkpoint._make_room(folder / "a" / "last", 2)


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "/." not in str(path.relative_to(folder.parent)))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("write", [write_file, write_folder, make_room])
def test_what_a_killed_process_wrote_whole_is_sent_later(
    write: Callable[[Path], None], bucket: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for moment in count(1):
        folder = place(f"local://bucket/{moment}")
        write_text(folder / "a" / "last", "old")
        write_text(folder / "a" / "last-1.pt", "obs")  # as large
        ended = run_until(moment, partial(write, folder))
        here = files_in(folder)
        copies._seen.clear()
        assert files_in(fetch(folder)) == files_in(bucket / str(moment))
        assert files_in(folder).items() >= here.items() or write is make_room  # it takes a name from what is there
        assert exists(folder / "model") == (bucket / str(moment) / "model").exists()
        if ended:
            break
    assert moment >= 3
    assert not capfd.readouterr().out  # nothing "was changed elsewhere"


def test_a_shard_of_a_killed_process_is_sent_by_the_next(bucket: Path, capfd: pytest.CaptureFixture[str]) -> None:
    computed = []
    for moment in count(1):
        folder, names = place(f"local://bucket/{moment}/made-up"), NAMES[:4]
        table_in(folder, rows=100)
        ended = run_until(moment, partial(filled, folder, Tower(names), rows=100))
        copies._seen.clear()
        tower = Tower(names)
        filled(folder, tower, rows=100)
        computed.append(tower.count)
        (shard,) = whole_shards(bucket / str(moment) / "made-up")
        assert files_in(shard).keys() >= {"shard.json", "values.bin"}
        assert files_in(shard) == files_in(folder / shard.name)
        if ended:
            break
    assert moment > 20
    assert not any(computed)  # the block that was computed is resumed from, or the shard is sent
    assert "changed elsewhere" not in capfd.readouterr().out
