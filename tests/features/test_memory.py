"""Memory: what filling a table and training on it take does not grow with the table's rows."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cache_memory.py"


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred megabytes of features add less than a quarter of that; the benchmark itself fills half a gigabyte."""
    spec = importlib.util.spec_from_file_location("cache_memory", SCRIPT)
    assert spec
    assert spec.loader
    monkeypatch.syspath_prepend(SCRIPT.parent)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.chdir(tmp_path)
    found = list(benchmark.measure(smoke=True))
    assert len(found) == 4
    for name, few, more, _, size in found:
        assert size > 90, name
        assert more - few < size / 4, (name, few, more)
    assert not list(tmp_path.iterdir())
