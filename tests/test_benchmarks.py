"""Every benchmark runs, and ends with the line that programs read; tests do not judge how fast it is."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests import processes

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TEXTS = {path: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
SCRIPTS = sorted(path for path, text in TEXTS.items() if "--smoke" in text and "__main__" in text)
ELSEWHERE = (
    "results.py",
    "unpaired_results.py",
    "calibrate_results.py",
    "m2m_results.py",
    "templates.py",
    "mteb_retrieval.py",  # needs mteb; its figures: tests/interop/test_mteb.py
    "cache_memory.py",
    "bench.py",  # tests/test_bench.py
    "embed_vs_clip_retrieval.py",  # needs the environment of `make bench-peers`
)  # the others take minutes
HERE = ("torture.py",)  # starts processes, for which this one is ready, and computes nothing itself
TABLE = runpy.run_path(str(BENCHMARKS / "bench_table.py"))
FIGURES = {row.script: sorted(row.figures) for row in TABLE["BENCHES"]}
QUICK = [path for path in SCRIPTS if path.name not in ELSEWHERE]


def smoke(script: str) -> None:
    """`python SCRIPT --smoke`"""
    sys.argv = [script, "--smoke"]
    sys.path.insert(0, str(BENCHMARKS))
    runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize("script", QUICK, ids=lambda path: path.stem)
def test_a_benchmark_ends_with_its_ratio_and_its_goal(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path[:])
    if script.name in HERE:
        monkeypatch.setenv("TMPDIR", str(tmp_path))  # which it changes
        smoke(str(script))
        printed = capsys.readouterr().out
    else:
        done = processes.run(smoke, str(script))
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    last = printed.splitlines()[-1]
    assert re.fullmatch(rf"{script.stem} ratio=\d+\.\d\d goal=\d+(\.\d+)?", last), last
    assert FIGURES.get(script.stem) in (None, sorted(measured(printed)))


def measured(printed: str) -> list[str]:
    """The figures of which a script has printed the ratio of every round."""
    return re.findall(r"^(\w+) rounds=\d+\.\d{4}(?:,\d+\.\d{4})* better=(?:higher|lower)$", printed, re.MULTILINE)


def test_there_are_benchmarks() -> None:
    assert "trimmed_text.py" in [path.name for path in QUICK]
