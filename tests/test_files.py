"""Locks: one process has a lock at a time; it ends with the process, and leaves nothing that counts. Permissions."""

import errno
import fcntl
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit import files, locks
from mclip_kit.config.recipe import load
from mclip_kit.errors import BusyError
from mclip_kit.files import write_text
from mclip_kit.locks import NO_LOCKS, hold, locked
from mclip_kit.train import checkpoint
from mclip_kit.train.build import build_model
from tests import tiny

FORK = multiprocessing.get_context("fork")


def holder(path: Path, ready: Path) -> BaseProcess:
    """A process that has the lock of a path until it is killed, and has a child that sleeps."""

    def hold() -> None:
        with locked(path) as mine:
            assert mine
            child = FORK.Process(target=time.sleep, args=(60,))
            child.start()
            ready.write_text(str(child.pid))
            child.join()

    process = FORK.Process(target=hold)
    process.start()
    while not ready.is_file() or not ready.read_text():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def test_a_lock_is_held_by_one_process_and_ends_when_it_is_killed(tmp_path: Path) -> None:
    path, ready = tmp_path / "folder", tmp_path / "ready"
    process = holder(path, ready)
    with locked(path) as mine:
        assert not mine
    with locked(tmp_path / "other") as mine:
        assert mine
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        assert (tmp_path / ".folder.lock").is_file()
        with locked(path) as mine:  # though the child of the killed process lives
            assert mine
    finally:
        os.kill(int(ready.read_text()), signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


def test_who_waits_gets_the_lock_even_if_the_path_is_renamed_and_removed(tmp_path: Path) -> None:
    """Four processes count to 100 together; each time they rename and remove the folder that they lock."""
    path, number = tmp_path / ".folder", tmp_path / "number"
    number.write_text("0")

    def count() -> None:
        for _ in range(25):
            with locked(path, wait=True) as mine:
                assert mine
                path.mkdir()
                number.write_text(str(int(number.read_text()) + 1))
                path.rename(tmp_path / "renamed")
                shutil.rmtree(tmp_path / "renamed")

    processes = [FORK.Process(target=count) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert number.read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


HOLD = """
import sys, time
from pathlib import Path
from mclip_kit.locks import hold
with hold(Path(sys.argv[1]), sys.argv[2], "trains there", "wait for it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["run", ""], ids=["a lock in the folder", "a lock beside it"])
def test_the_second_is_told_who_holds_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is another program; when it is killed, what it left of itself does not count."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", "mine")  # a short name: long commands are cut
    with subprocess.Popen([sys.executable, "-c", HOLD, folder, name], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout
            assert first.stdout.readline() == "held\n"
            with pytest.raises(BusyError) as told, hold(folder, name, "trains there", "wait for it"):
                pass
        finally:
            first.kill()
    host, year = platform.node(), time.strftime("%Y-")
    start = f"{folder}: another process trains there (process {first.pid} on {host} since {year}"
    assert str(told.value).startswith(start)
    assert str(told.value).endswith("); wait for it")
    assert f"-c {folder}" in str(told.value)
    left = sorted(path.name for path in (tmp_path / "runs").rglob(".*"))
    assert left == [f".{name or 'mine'}.holder", f".{name or 'mine'}.lock"]
    with (
        locked(folder / name),
        pytest.raises(BusyError, match="another process writes to it; wait for it"),
        hold(folder, name),
    ):
        pass  # a program that does not say who it is; the killed one is not named
    with hold(folder, name):
        pass
    assert not list((tmp_path / "runs").rglob(".*"))


@pytest.mark.parametrize("code", sorted(NO_LOCKS))
def test_a_file_is_the_lock_where_the_system_refuses_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "folder") as mine:
        assert mine
        process = FORK.Process(target=lambda: os._exit(enter(tmp_path / "folder")))
        process.start()
        process.join(60)
        assert process.exitcode == 3
    assert enter(tmp_path / "folder") == 4
    killed = holder(tmp_path / "folder", tmp_path / "ready")
    killed.kill()
    killed.join()
    os.kill(int((tmp_path / "ready").read_text()), signal.SIGKILL)
    assert list(tmp_path.glob(".folder.*lock"))
    assert enter(tmp_path / "folder") == 4
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


def test_the_lock_file_of_another_machine_is_removed_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines on one folder whose file system refuses locks; the other one goes down while it writes there."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def other() -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "far")
        monkeypatch.setattr(platform, "node", lambda: "far")
        monkeypatch.setattr(locks, "place", lambda: "0123abcd")
        with hold(tmp_path / "mine", "run"):
            os._exit(7)

    monkeypatch.setattr(fcntl, "flock", refuse)
    process = FORK.Process(target=other)
    process.start()
    process.join(60)
    assert process.exitcode == 7
    lock = tmp_path / "mine" / ".run.softlock"
    with locked(tmp_path / "mine" / "run") as mine:
        assert not mine
    message = rf"another process writes to it \(process \d+ on far since .*; if that machine went down, remove {lock}$"
    with pytest.raises(BusyError, match=message), hold(tmp_path / "mine", "run"):
        pass
    lock.unlink()
    with hold(tmp_path / "mine", "run"):
        assert lock.exists()
    assert not list((tmp_path / "mine").iterdir())


def enter(path: Path) -> int:
    """4 if a process gets a lock, else 3."""
    with locked(path) as mine:
        return 3 + mine


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_gives(umask: int, squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    stage = {"kind": "translate", "name": "x", "train": ["decoder"], "steps": 1, "batch_tokens": 512, "lr": 1e-3}
    translation = {key: tree[key] for key in ("about", "encoder", "data")} | {"stages": [stage]}
    translation |= {"encoder": tree["encoder"] | {"weights": "random"}, "decoder": {"layers": 1}}
    before = os.umask(umask)
    try:
        for name, content in (("clip", tree), ("translator", translation)):
            build_model(load(tiny.write_recipe(content, tmp_path / f"{name}.yaml"))).save(tmp_path / name)
        checkpoint.save(checkpoint.TrainState(model={"a": torch.ones(2)}), tmp_path / "last.pt")
        write_text(tmp_path / "text", "a")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) >= 5
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}


WAYS = {
    "a file": "with files.write_whole(folder / 'last.pt') as part: part.write_text('half'); wait()",
    "a folder": "with files.new_folder(folder / sys.argv[3]) as part: (part / 'a').write_text('half'); wait()",
    "a temporary folder": "with files.temporary_folder() as part: (part / 'a').write_text('half'); wait()",
}
WRITE = """
import sys, tempfile, time
from pathlib import Path
from mclip_kit import files, locks
folder = Path(sys.argv[1])
tempfile.tempdir = sys.argv[1]
def wait():
    print("writing", flush=True)
    time.sleep(60)
exec(sys.argv[2])
"""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_a_killed_process_left_is_removed_by_the_next_one(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what a living one writes, nor what one of another machine does, unless nothing has changed for long."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = [sys.executable, "-c", WRITE, tmp_path, way]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    try:
        for writer in writers:
            assert writer.stdout
            assert writer.stdout.readline() == "writing\n"
        killed, living = ([path for path in tmp_path.iterdir() if f"{writer.pid}-" in path.name] for writer in writers)
        assert (len(killed), len(living)) == (1, 1)
        writers[0].kill()
        writers[0].wait()
        others = [Path(str(killed[0]).replace(locks.place(), place)) for place in ("0123abcd", "abcd0123")]
        for other in others:
            subprocess.run(["cp", "-r", killed[0], other], check=True)
        days = time.time() - 8 * 24 * 3600
        for path in (*others[1].rglob("*"), others[1]):
            os.utime(path, (days, days))
        names = [".notes.1-x.part", ".data.part", "a.1-0123abcd.part", ".mclip_kit", "mclip_kit-1"]
        for name in names:
            (tmp_path / name).touch()
        write_text(tmp_path / "last.pt", "whole")
        with files.temporary_folder():
            pass
        assert not killed[0].exists()
        assert not others[1].exists()
        left = {path.name for path in tmp_path.iterdir() if path.suffix not in (".lock", ".holder")}
        assert left == {*names, "last.pt", living[0].name, others[0].name}
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    write_text(tmp_path / "last.pt", "the next")
    assert not [path for path in tmp_path.glob(".*") if path in living]


@pytest.mark.parametrize("whole", [files.write_whole, files.new_folder], ids=["a file", "a folder"])
def test_each_writer_removes_what_a_killed_one_left_beside_it(whole: Any, tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = tmp_path / f".out.{killed.pid}-{locks.place()}.part"
    left.mkdir()
    with whole(tmp_path / "out") as part:
        if not part.exists():
            part.touch()
    assert not left.exists()
