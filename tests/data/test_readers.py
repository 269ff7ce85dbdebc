"""Reader processes: their number changes nothing but the time, and none of them stays behind."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mclip_kit.data.readers import read_ahead, reader_count
from mclip_kit.errors import DataError
from tests import processes

PATIENCE = 120  # seconds


def until(is_so: Callable[[], bool]) -> None:
    """Wait for a state."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that its parent has not noticed has."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def draw(item: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """A tensor and other values, with random numbers of the item's own."""
    torch.manual_seed(item)
    return torch.rand(3, 4), {"item": item, "array": np.arange(item), "process": os.getpid()}


@pytest.mark.parametrize("readers", [0, 1, 2, 4])
def test_results_come_in_order_and_are_the_same(readers: int) -> None:
    state = torch.get_rng_state()
    found = list(read_ahead(draw, iter(range(9)), readers))
    assert [item for item, _ in found] == list(range(9))
    for item, (tensor, values) in found:
        expected, others = draw(item)
        assert torch.equal(tensor, expected)
        assert values["item"] == item
        assert np.array_equal(values["array"], others["array"])
    assert len({values["process"] for _, (_, values) in found} - {os.getpid()}) == readers
    if readers:
        torch.set_rng_state(state)
        list(read_ahead(draw, [1, 2], readers))
        assert torch.equal(torch.get_rng_state(), state)  # readers draw from their own
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("readers", "ahead"), [(1, 4), (2, 4), (3, 6), (4, 4), (6, 6)])
def test_so_many_items_are_ahead_of_the_one_in_use(readers: int, ahead: int) -> None:
    """So the next results are being made before the use of this one begins."""
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            asked.append(item)
            yield item

    results = read_ahead(draw, items(), readers)
    for taken in range(1, 8):
        next(results)
        assert len(asked) == taken + ahead
    results.close()


def wrong(item: int) -> int:
    if item == 3:
        raise DataError("a/b.jpg: not a readable picture")
    if item == 4:
        raise FileNotFoundError(2, "No such file or directory", "c.tar")
    return item


@pytest.mark.parametrize("readers", [0, 2])
def test_an_error_of_a_reader_is_raised_as_it_is(readers: int) -> None:
    results = read_ahead(wrong, [1, 2, 3], readers)
    assert [next(results)[1], next(results)[1]] == [1, 2]
    with pytest.raises(DataError) as told:
        next(results)
    assert str(told.value) == "a/b.jpg: not a readable picture"
    with pytest.raises(FileNotFoundError) as missing:
        list(read_ahead(wrong, [4], readers))
    assert missing.value.filename == "c.tar"
    assert ("in wrong" in "".join(getattr(missing.value, "__notes__", []))) == bool(readers)


def test_readers_end_when_nobody_wants_more() -> None:
    results = read_ahead(draw, iter(int, 1), readers=2)
    pids = [next(results)[1][1]["process"] for _ in range(2)]
    assert all(map(is_running, pids))
    results.close()
    until(lambda: not any(map(is_running, pids)))


def slow(item: int) -> int:
    """Its process; the second item takes as long as the reader lives."""
    if item:
        time.sleep(10 * PATIENCE)
    return os.getpid()


def read_and_stop(report: str, ending: str) -> None:
    """Read in two processes, report their numbers, and stop while one of them reads."""
    results = read_ahead(slow, iter([0, 1, 0]), readers=2)
    first, _ = next(results)[1], Path(report).parent
    others = [child.pid for child in multiprocessing.active_children()]
    assert first in others
    assert len(others) == 2
    Path(report).write_text(" ".join(map(str, others)))
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "interrupted":  # as a terminal does, readers too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os.killpg(0, signal.SIGINT)
        os.killpg(0, signal.SIGTERM)
    globals()["kept"] = results  # nobody closes it


@pytest.mark.parametrize(("ending", "code"), [("killed", -signal.SIGKILL), ("interrupted", 1), ("left open", 0)])
def test_readers_end_with_their_process(ending: str, code: int, tmp_path: Path) -> None:
    done = processes.start(read_and_stop, str(tmp_path / "pids"), ending, session=True).wait()
    assert done.returncode == code, done.stderr
    assert done.stderr.count("Traceback") == (ending == "interrupted")  # of this process alone
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(map(is_running, pids)))


def kill_oneself(item: int) -> torch.Tensor:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(2)


def test_a_killed_reader_ends_in_a_line_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"^a reader process was killed.*fewer than 2, or with none: .*workers=0"):
        list(read_ahead(kill_oneself, range(4), readers=2))
    until(lambda: not multiprocessing.active_children())
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # a death interrupts nothing else


def test_a_process_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12))
    assert [reader_count(None, useful=True), reader_count(None, useful=False)] == [12, 0]
    assert [reader_count(5, useful=False), reader_count(0, useful=True)] == [5, 0]
    for processes_here, share in ((4, 3), (24, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes_here))
        assert reader_count(None, useful=True) == share
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(96))
    assert reader_count(None, useful=True) == 16
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert reader_count(None, useful=True) == 0
    with pytest.raises(DataError, match=r"workers: 3: reader processes need Linux"):
        reader_count(3, useful=True)


def read_without_room() -> None:
    """Read in two processes whose shared memory is smaller than a result; exit code 77 if that may not be arranged."""
    system, private = ctypes.CDLL(None, use_errno=True), 1 << 18 | 1 << 14  # MS_PRIVATE, MS_REC
    if system.unshare(1 << 17) or system.mount(b"none", b"/", None, private, None):  # CLONE_NEWNS
        sys.exit(77)
    if system.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m"):
        sys.exit(77)
    for item, tensor in read_ahead(large, range(6), readers=2):
        assert torch.equal(tensor, large(item))


def large(item: int) -> torch.Tensor:
    return torch.full((1 << 19,), float(item))


def test_results_come_where_the_shared_memory_has_no_room() -> None:
    done = processes.run(read_without_room)
    if done.returncode == 77:
        pytest.skip("this user may not mount a file system")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the shared memory has no room") == 1
