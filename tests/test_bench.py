"""`make bench`: one table of scripts, a file of figures for each, and the tables of docs/performance.md."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
QUICK = "ranks"  # the script that is measured here


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """benchmarks/bench.py, in an empty folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield importlib.import_module("bench")
    for name in set(sys.modules) - before:
        if name in {path.stem for path in BENCHMARKS.glob("*.py")}:
            del sys.modules[name]


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`python benchmarks/bench.py WORDS`"""
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    bench.main()


def test_each_script_with_a_ratio_is_measured_or_says_why_not(bench: ModuleType) -> None:
    from bench_table import BENCHES, OTHERS  # type: ignore[import-not-found]

    measured = [row.script for row in BENCHES]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    judged = [name for name, text in texts.items() if "last_line(" in text or " ratio={" in text]
    assert sorted([*measured, *OTHERS]) == sorted(judged), "a row or a reason in benchmarks/bench_table.py"
    for row in BENCHES:
        assert row.script in row.figures
        said = re.findall(r"--[\w-]+", row.options)
        assert not [option for option in said if f'"{option}"' not in texts[row.script]], row


def test_the_page_has_the_tables_of_the_results(bench: ModuleType) -> None:
    page = ROOT.joinpath("docs", "performance.md").read_text(encoding="utf-8")
    results = bench.bench_page.read(bench.RESULTS)
    assert bench.bench_page.filled(page, results) == page, "python benchmarks/bench.py --page"


def test_a_script_is_measured_once_and_again_if_asked(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bench, monkeypatch, "--smoke", QUICK)
    first = json.loads(Path("build", "bench-smoke", f"{QUICK}.json").read_text(encoding="utf-8"))
    figure = first["figures"][QUICK]
    assert figure["min"] <= figure["median"] <= figure["max"]
    assert figure["met"] == (figure["median"] >= figure["goal"])
    assert first["machine"]["cores"] > 0
    assert first["versions"]["numpy"]
    assert first["command"] == f"python benchmarks/{QUICK}.py --smoke"
    assert first["printed"][-1] == f"{QUICK} ratio={figure['median']:.2f} goal={figure['goal']:g}"
    capsys.readouterr()
    run(bench, monkeypatch, "--smoke", QUICK)
    assert "[1/" not in capsys.readouterr().out
    table = "\n".join(bench.bench_page.table("ranks", {QUICK: first}))
    assert f"{figure['median']:.2f} ({figure['min']:.2f} to {figure['max']:.2f}), 1" in table
    assert "not measured yet" in table  # recall
    assert first["machine"]["cpu"] in "\n".join(bench.bench_page.about_machines({QUICK: first}))
    assert not list(Path("build", "bench").iterdir())


def test_a_script_without_an_end_is_ended_and_the_others_go_on(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench_table import Bench

    row = next(row for row in bench.BENCHES if row.script == QUICK)
    late = Bench(QUICK, row.section, row.figures, minutes=1e-4)
    wrong = Bench("no_such_script", row.section, {})
    assert bench.run([late, wrong], Path(), smoke=True) == [QUICK, "no_such_script"]
    printed = capsys.readouterr().out
    assert "no end within 0.0001 minutes" in printed
    assert "No such file" in printed
    assert not list(Path().glob("*.json"))


def test_what_a_script_prints(bench: ModuleType) -> None:
    text = "noise\na rounds=1.0000,3.0000,2.0000 better=lower\na ratio=2.00 goal=2\n"
    found = bench.judged(bench.parse(text)["a"])
    assert found == {
        "rounds": [1, 3, 2],
        "better": "lower",
        "goal": 2,
        "median": 2,
        "min": 1,
        "max": 3,
        "met": True,
    }
    assert not bench.judged(found | {"better": "higher", "goal": 2.1})["met"]
    for wrong in ("", "a ratio=2.00 goal=2\n", "a rounds=1.0000 better=lower\n"):
        with pytest.raises(bench.Failed):
            bench.parse(wrong)


def test_a_median_outside_the_spread_is_named(bench: ModuleType) -> None:
    def result(old: dict[str, object], *rounds: float) -> dict[str, object]:
        figure = bench.judged({"rounds": list(rounds), "better": "higher", "goal": 1})
        found = {"command": "python a.py", "figures": {"a": figure}, "date": "2026-01-01", "load": 0.1}
        return found | {"earlier": bench.history(old, "python a.py")}

    first = result({}, 1, 2, 3)
    assert not list(bench.compared(first))
    assert "within the spread" in next(bench.compared(result(first, 2.5, 2.9, 4)))
    outside = result(first, 3.5, 3.9, 4)
    assert "OUTSIDE" in next(bench.compared(outside))
    assert bench.bench_page._before(outside["earlier"], "a", outside["figures"]["a"]).endswith("**outside**")
    assert [old["figures"]["a"]["median"] for old in bench.history(outside, "python a.py")] == [2, 3.9]
    assert not bench.history(outside, "python a.py --rounds 9"), "other options, another figure"
    more = result(outside, 4)
    more["figures"]["b"] = more["figures"]["a"]  # type: ignore[index]
    assert [line.split()[0] for line in bench.compared(more)] == ["a"], "b is new"
    assert bench.bench_page._before(more["earlier"], "b", more["figures"]["b"]) == ""  # type: ignore[index]
    row = bench.Bench("a", "start-up", {"a": "one", "b": "two"})
    assert bench.is_measured(row, more | {"command": row.command}, False)
    assert not bench.is_measured(row, outside | {"command": row.command}, False), "b is missing"


def test_an_unknown_name_is_one_line(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(bench, monkeypatch, "--again", "rank")
    assert ended.value.code == 2
    assert "no benchmark rank; there are: startup, cached_vs_live" in capsys.readouterr().err


def test_a_peer_without_an_environment_is_taken_from_ours(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import peers  # type: ignore[import-not-found]

    monkeypatch.setattr(peers, "FOLDER", Path("peers"))
    assert peers.python(None) == peers.python("fairseq") == sys.executable
    assert peers.missing() == [*peers.PEERS]
    Path("peers", "fairseq").mkdir(parents=True)
    Path("peers", "fairseq", peers.READY).touch()
    assert peers.python("fairseq") == str(Path("peers", "fairseq", "bin", "python"))
    assert {row.peer for row in bench.BENCHES} - {None} <= peers.PEERS.keys()
