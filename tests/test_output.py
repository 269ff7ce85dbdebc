"""What commands print: --quiet, --json, the line at the end of a stage, and colours."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mclip_kit import progress
from mclip_kit.cli import cli
from mclip_kit.cli.output import coloured
from mclip_kit.features.manage import list_tables
from tests import tiny
from tests.train.runs import only_stage

BASELINE = ("--baseline", "teacher")


def typed(*words: str | Path, **more: Any) -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in words], **more)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def place(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of one stage, and its run, which was trained without --quiet."""
    place = tmp_path_factory.mktemp("output")
    tree = tiny.recipe(squares) | only_stage(squares, 1)
    tree["stages"][0] |= {"epochs": 1, "languages": ["de"]}
    recipe = tiny.write_recipe(tree, place / "tiny.yaml")
    (place / "printed.txt").write_text(typed("train", recipe, "--out", place / "loud").output, encoding="utf-8")
    return place


def test_a_stage_ends_with_a_line_of_what_it_trained_and_its_scores(place: Path) -> None:
    rows = [json.loads(line) for line in (place / "loud" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [row["score"] for row in rows if "score" in row]
    (line,) = (
        line for line in (place / "printed.txt").read_text().splitlines() if line.startswith("stage 1/1 distill: ")
    )
    found = re.fullmatch(
        r"stage 1/1 distill: trained student, (\d+) steps, \d+ s; (.*) ([\d.]+) before, ([\d.]+) after"
        r"(?:, with the weights of step \d+, the best)?",
        line,
    )
    assert found
    assert found[1] == str(rows[-1]["step"])
    assert found[2] == "text-to-image R@1, mean of languages"
    assert (found[3], found[4]) == (f"{scores[0]:.1f}", f"{max(scores):.1f}")  # the best weights are kept


def test_a_resumed_stage_counts_the_time_before(squares: Path) -> None:
    from types import SimpleNamespace

    from mclip_kit.train.callbacks.stage_summary import StageSummary
    from mclip_kit.train.checkpoint import TrainState

    printed: list[str] = []
    stage = SimpleNamespace(train=["student"])
    run = SimpleNamespace(cache=SimpleNamespace(note=printed.append))
    at: Any = SimpleNamespace(
        run=run, stage=stage, loop=SimpleNamespace(name="stage 1/1 x"), step=1, best=None, evaluation=None
    )
    earlier = TrainState(0, 1, callbacks={"StageSummary": {"seconds": 7200.0}})
    again = StageSummary(at, earlier)
    again.after_stage()
    assert printed == ["stage 1/1 x: trained student, 1 step, 2.0 h"]
    state = TrainState(0, 1)
    again.add_to_checkpoint(state)
    assert 7200 <= state.callbacks["StageSummary"]["seconds"] < 7300


def test_quiet_training_prints_its_result_and_its_warnings(place: Path, squares: Path) -> None:
    loud = (place / "printed.txt").read_text(encoding="utf-8").splitlines()
    done = typed("--quiet", "train", place / "tiny.yaml", "--out", place / "still")
    lines = [
        line
        for line in loud
        if line.startswith((f"{place / 'loud'}/model: done", "warning", "  leak", "stage distill,"))
    ]
    assert len(loud) > len(lines) + 4
    assert done.stdout == "".join(f"{line}\n" for line in lines).replace("loud", "still")
    assert not done.stderr
    assert not progress.is_quiet()  # it was of that command alone


def test_quiet_evaluation_prints_its_tables(place: Path, squares: Path) -> None:
    words = ("eval", place / "loud" / "model", "--data", squares, "--langs", "de")
    quiet = typed("--quiet", *words).stdout  # towers run, of which it says nothing
    loud = typed(*words).stdout
    assert "computed on: " in loud
    assert "written" in loud
    assert quiet.strip() == loud.partition("\ncomputed on")[0].strip()


@pytest.mark.parametrize("quiet", [False, True])
def test_json_of_an_evaluation_is_alone(place: Path, squares: Path, quiet: bool) -> None:
    words = ("eval", place / "loud" / "model", "--data", squares, "--langs", "de,fr", *BASELINE, "--json")
    done = typed(*["--quiet"] * quiet, *words)
    found = json.loads(done.stdout)
    files = [Path(file) for file in found.pop("files")]
    assert {file.name for file in files} == {"results.json", "report.html", "retrieval.png"}
    assert all(file.is_file() for file in files)
    assert found == json.loads(files[0].read_text(encoding="utf-8"))
    assert ("against teacher" in done.stderr) is not quiet
    assert not (quiet and done.stderr)
    assert "--json" not in found["command"]


def test_json_of_the_cache(place: Path) -> None:
    tables = list_tables(place / "features")
    (line,) = typed("cache", "ls", "--root", place / "features", "--json").stdout.splitlines()
    found = json.loads(line)
    assert found["root"] == str(place / "features")
    assert len(tables) >= 1
    assert [(row["folder"], row["rows"], row["bytes"], row["kind"]) for row in found["tables"]] == [
        (str(table.folder), table.rows, table.bytes, table.kind) for table in tables
    ]


def steady(found: dict[str, Any]) -> dict[str, Any]:
    """What `doctor` found but for what is free, which other programs change at any time."""
    rows = [{**row, "what": re.sub(r"[\d.]+ [kMGT]?B", "SIZE", row["what"])} for row in found["findings"]]
    return {**found, "findings": rows}


def test_json_and_quiet_of_the_doctor(place: Path) -> None:
    loud = CliRunner().invoke(cli, ["doctor", "--json"])
    found = json.loads(loud.stdout)
    wrong = [row for row in found["findings"] if row["status"] == "problem"]
    assert loud.exit_code == bool(wrong)
    assert {"ok"} <= {row["status"] for row in found["findings"]} <= {"ok", "note", "problem"}
    assert all(row["what"] in loud.stderr for row in found["findings"])
    assert found["conclusion"].startswith("this environment is ")
    both = CliRunner().invoke(cli, ["--quiet", "doctor", "--json"])
    assert steady(json.loads(both.stdout)) == steady(found)
    assert not both.stderr
    quiet = CliRunner().invoke(cli, ["--quiet", "doctor"])
    assert not [line for line in quiet.stdout.splitlines() if line.startswith("ok ")]
    assert quiet.stdout.splitlines()[-1] == found["conclusion"]


def test_an_error_of_a_json_command_is_on_standard_error(place: Path, squares: Path) -> None:
    done = CliRunner().invoke(cli, ["eval", str(place / "none"), "--data", str(squares), "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")


def test_colours_mark_what_is_certain_and_only_on_terminals(place: Path, squares: Path) -> None:
    words = ("eval", place / "loud" / "model", "--data", squares, *BASELINE)
    plain, colour = typed(*words).stdout, typed(*words, color=True).stdout
    assert "\x1b" not in plain
    assert "\x1b[33mfr  never trained\x1b[0m" in colour
    assert "\x1b" not in typed(*words, color=True, env={"NO_COLOR": "1"}).stdout


def test_only_intervals_on_one_side_of_zero_and_languages_never_trained_have_a_colour() -> None:
    line = "  tr  never trained    -3.0 [-7.0, -0.1]   +3.0 [+0.1, +7.0]   +0.1 [+0.0, +0.3]\nmean of 1 never trained"
    red, green, yellow = "\x1b[31m", "\x1b[32m", "\x1b[33m"
    found = coloured(line)
    assert re.findall(r"(\x1b\[3.m)(.*?)\x1b\[0m", found) == [
        (yellow, "tr  never trained"),
        (red, "-3.0 [-7.0, -0.1]"),
        (green, "+3.0 [+0.1, +7.0]"),
    ]
    assert re.sub(r"\x1b\[\d+m", "", found) == line
