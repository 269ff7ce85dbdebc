"""Memory: what a table takes to be filled and to be trained on does not grow with its rows."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cache_memory.py"


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Half a gigabyte of features; a hundred times the small table's rows are the script's without --smoke."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 4
    found = re.fullmatch(r"cache_memory ratio=(\d+\.\d\d) goal=1\.5", last)
    assert found, last
    assert float(found[1]) < 1.5, done.stdout
    assert not list(tmp_path.iterdir())
