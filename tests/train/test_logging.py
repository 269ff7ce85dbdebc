"""Rows of metrics.jsonl, and the trackers beside it."""

import os
import subprocess
import sys
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
        written = b"".join(path.read_bytes() for path in (tmp_path / name).rglob(files))
        assert [f"stage{stage}/mean_t2i_r1".encode() in written for stage in (0, 1)] == [name in trackers] * 2
        assert b"no number" not in written


def test_wandb_that_cannot_start_is_said(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "WANDB_MODE": "online"}  # no key anywhere
    code = "from mclip_kit.train.logging import Log; from pathlib import Path; Log(Path('run'), ['wandb'], 0, 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=home, capture_output=True, text=True)
    assert "RecipeError: trackers: wandb cannot start" in done.stderr.splitlines()[-1]
    assert "WANDB_MODE=offline" in done.stderr.splitlines()[-1]
