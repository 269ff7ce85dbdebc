"""Rows of metrics.jsonl, and the trackers beside it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mclip_kit.train.logging import Log, read_log


def test_rows_of_an_interrupted_attempt_are_dropped(tmp_path: Path) -> None:
    log = Log(tmp_path, [], 0, 0)
    for step in range(4):
        log.write(0, "distill", step, {"loss": step / 2})
    log.close()
    log = Log(tmp_path, [], 0, 2)
    log.write(0, "distill", 3, {"loss": 7.0})
    log.close()
    assert [row["loss"] for row in read_log(tmp_path)] == [0.0, 0.5, 1.0, 7.0]


@pytest.mark.parametrize("trackers", [["tensorboard"], ["wandb"], ["tensorboard", "wandb"]])
def test_numbers_reach_the_trackers(trackers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for stage, start in ((0, 0), (1, 2)):  # begun, and gone on with
        log = Log(tmp_path, trackers, stage, start)
        log.write(stage, f"stage{stage}", start + 1, {"mean_t2i_r1": 12.5, "note": "no number"})
        log.close()
    for name, files in {"tensorboard": "events.*", "wandb": "*.wandb"}.items():
        names = [f"stage{stage}/mean_t2i_r1".encode() for stage in (0, 1)]
        written = read_until(tmp_path / name, files, names if name in trackers else [])
        assert [column in written for column in names] == [name in trackers] * 2
        assert b"no number" not in written


def read_until(folder: Path, files: str, wanted: list[bytes], patience: float = 60.0) -> bytes:
    """All bytes of some files, once they hold what is wanted: a process of wandb writes them after the run's end."""
    end = time.monotonic() + patience
    while True:
        written = b"".join(path.read_bytes() for path in sorted(folder.rglob(files)))
        if all(word in written for word in wanted) or time.monotonic() > end:
            return written
        time.sleep(0.1)


def test_wandb_that_cannot_start_is_said(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "WANDB_MODE": "online"}  # no key anywhere
    code = "from mclip_kit.train.logging import Log; from pathlib import Path; Log(Path('run'), ['wandb'], 0, 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=home, capture_output=True, text=True)
    assert "RecipeError: trackers: wandb cannot start" in done.stderr.splitlines()[-1]
    assert "WANDB_MODE=offline" in done.stderr.splitlines()[-1]
