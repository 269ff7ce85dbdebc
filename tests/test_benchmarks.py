"""Every benchmark runs, and ends with the line that programs read; how fast it is, is no matter of a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if "--smoke" in path.read_text(encoding="utf-8"))
ELSEWHERE = ("results.py", "cache_memory.py")  # one trains for minutes, the other has a test of its own
QUICK = [path for path in SCRIPTS if path.name not in ELSEWHERE]


@pytest.mark.parametrize("script", QUICK, ids=lambda path: path.stem)
def test_a_benchmark_ends_with_its_ratio_and_its_goal(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), "--smoke"]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"{script.stem} ratio=\d+\.\d\d goal=\d+(\.\d+)?", last), last


def test_there_are_benchmarks() -> None:
    assert "trimmed_text.py" in [path.name for path in QUICK]
