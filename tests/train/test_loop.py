"""The loop with reader processes behind its batches: the same steps, whatever their number, and how it ends."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data.captions import read_captions
from mclip_kit.data.readers import read_ahead
from mclip_kit.errors import DataError
from mclip_kit.train import callbacks
from mclip_kit.train.loop import _read, _rows
from mclip_kit.train.run import Run
from tests import processes, tiny
from tests.tasks.frozen import BROKEN, with_broken_files
from tests.train.runs import Killed, different, killed_at, losses, train, weights

PATIENCE = 240  # seconds


@pytest.fixture(scope="module")
def broken(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus as picture files, three of which cannot be read."""
    return with_broken_files(squares, tmp_path_factory.mktemp("broken") / "data")


def tree(data: Path, stage: int = 0, **changes: Any) -> dict[str, Any]:
    """One stage of the tiny recipe, nothing in the cache.

    The first is a teacher that learns from pictures which are decoded and augmented in every step, in drawn templates.
    """
    whole = tiny.recipe(data) | {"evaluation": None, "cache": {"features": "off", "max_bad_fraction": 0.05}}
    whole["teacher" if stage else "encoder"]["weights"] = "random"
    return whole | {"stages": [whole["stages"][stage] | {"batch_size": 12}]} | changes


def recipe(data: Path, folder: Path, *sets: str, **changes: Any) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    return load(tiny.write_recipe(tree(data, **changes), folder / "recipe.yaml"), sets)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_batches_are_the_same_whatever_the_number_of_readers(stage: int, broken: Path, tmp_path: Path) -> None:
    made = Run(recipe(broken, tmp_path, stage=stage), tmp_path / "run")
    task = next(made.tasks())
    loop = made.loop(0, task, task.module())
    kept, start = torch.get_num_threads(), loop.steps_per_epoch - 2  # the end of an epoch, and the next one
    found = {}
    try:
        for readers in (0, 1, 2, 4):
            torch.set_num_threads(2 if readers == 0 else 1)
            work = list(_rows(loop, start))[:5]
            found[readers] = [read for _, read in read_ahead(partial(_read, loop, 0, 1), work, readers)]
    finally:
        torch.set_num_threads(kept)
    assert loop.steps > start + 2
    for readers in (1, 2, 4):
        for (mine, bad), (other, others) in zip(found[0], found[readers], strict=True):
            assert bad == others
            for name in (field.name for field in fields(mine)):
                a, b = getattr(mine, name), getattr(other, name)
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
    if stage == 0:
        assert any(bad for _, bad in found[0])  # pictures that could not be read


def test_a_run_is_the_same_with_readers_also_after_a_stop_in_mid_epoch(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(broken, tmp_path, "workers=0"), tmp_path / "none")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:

        def kill() -> None:
            raise Killed

        patch.setattr(callbacks, "CALLBACKS", [killed_at(0, 9, kill), *callbacks.CALLBACKS])
        patch.setattr("mclip_kit.train.run.CALLBACKS", callbacks.CALLBACKS)
        with pytest.raises(Killed):
            train(recipe(broken, tmp_path, "workers=3"), tmp_path / "some")
    train(recipe(broken, tmp_path, "workers=2"), tmp_path / "some", resume=True)
    assert different(weights(tmp_path / "none"), weights(tmp_path / "some")) == []
    assert losses(tmp_path / "none") == losses(tmp_path / "some")
    paths = sorted(str(read_captions(broken).files[image]) for image in BROKEN)
    assert sorted((tmp_path / "some" / "unreadable.txt").read_text(encoding="utf-8").splitlines()) == paths
    printed = capsys.readouterr().out
    assert [printed.count(path) for path in paths] == [1, 1, 1]
    assert "goes on with workers: 2, was 3" in printed


def test_too_many_unreadable_pictures_end_a_run_with_readers(broken: Path, tmp_path: Path) -> None:
    told = []
    for readers in (0, 2):
        with pytest.raises(DataError, match=r"of 72 pictures cannot be read, such as .*max_bad_fraction") as error:
            Run(recipe(broken, tmp_path, f"workers={readers}", cache="off"), tmp_path / str(readers)).go()
        told.append(str(error.value))
    assert told[0] == told[1]


@pytest.mark.parametrize(("stage", "decodes"), [(0, True), (1, False), (2, False)])
def test_readers_are_started_where_every_step_decodes(
    stage: int, decodes: bool, broken: Path, squares: Path, tmp_path: Path
) -> None:
    def readers(data: Path, *sets: str) -> int:
        cache = {"max_bad_fraction": 0.05}
        made = Run(recipe(data, tmp_path, *sets, stage=stage, cache=cache), tmp_path / "run")
        task = next(made.tasks())
        return made.loop(0, task, task.module()).readers

    assert (readers(broken) > 0) == decodes
    assert readers(squares) == 0  # pictures in an array
    assert [readers(broken, f"workers={n}") for n in (0, 3)] == [0, 3]


def until(is_so: Callable[[], bool], child: processes.Child) -> None:
    """Wait for a state while a process runs."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert child.poll() is None, child.stderr
        assert time.monotonic() < end
        time.sleep(0.02)


def endless(broken: Path, folder: Path) -> tuple[processes.Child, list[psutil.Process]]:
    """A run of the command that takes steps, with two readers."""
    long = {"stages": [tree(broken)["stages"][0] | {"epochs": 10**5}], "checkpoint_every": 10**6}
    place = tiny.write_recipe(tree(broken, workers=2, **long), folder / "recipe.yaml")
    child = processes.start(processes.command, "train", str(place), "--out", str(folder / "run"), session=True)
    log = folder / "run" / "metrics.jsonl"
    until(lambda: log.is_file() and '"loss"' in log.read_text(encoding="utf-8"), child)
    return child, psutil.Process(child.pid).children()


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_finishes_the_step_and_leaves_no_reader(broken: Path, tmp_path: Path) -> None:
    child, readers = endless(broken, tmp_path)
    assert len(readers) == 2
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does, readers too
    assert child.wait().returncode == 130
    assert "stopped after step" in child.stderr
    assert "Traceback" not in child.stderr
    assert all(map(has_ended, readers))


def test_a_killed_reader_ends_the_run_in_one_line(broken: Path, tmp_path: Path) -> None:
    child, readers = endless(broken, tmp_path)
    readers[1].kill()
    assert child.wait().returncode == 2
    (line,) = [line for line in child.stderr.splitlines() if "reader" in line]
    assert "a reader process was killed, perhaps because the memory is full" in line
    assert "train --resume --set workers=0" in line
    assert "Traceback" not in child.stderr
    assert all(map(has_ended, readers))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows


def test_each_rank_has_its_readers(broken: Path, tmp_path: Path) -> None:
    for readers in (0, 2):
        place = tiny.write_recipe(tree(broken, workers=readers), tmp_path / f"{readers}.yaml")
        processes.train(place, tmp_path / str(readers), 2)
    assert different(weights(tmp_path / "0"), weights(tmp_path / "2")) == []
