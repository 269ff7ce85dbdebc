"""report.html, opened in a real browser where there is one."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.leakage import Leak, as_json
from mclip_kit.evaluate.base import Gallery, metrics_of
from mclip_kit.evaluate.report import html
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.files import write_json
from mclip_kit.train.run import Run
from tests import tiny
from tests.test_cli import assert_one_line

PHONE = 390  # pixels


@pytest.fixture(scope="module")
def run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with a leak, evaluated against its teacher."""
    recipe = parse(tiny.recipe(squares), Recipe, "tiny")
    folder = tmp_path_factory.mktemp("runs") / "one"
    Run(recipe, folder, evaluator(recipe)).go()
    leak = Leak(f"{squares} train", f"{squares} test", "pictures", 3, 12)
    write_json(folder / "leakage.json", as_json([leak]))
    words = ["eval", str(folder / "model"), "--data", str(squares), "--baseline", "teacher"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert str(folder / "eval" / "data.test" / "report.html") in done.output
    return folder


def opened(browser: Any, path: Path, width: int) -> tuple[Any, list[str]]:
    """The page, and the complaints of the console."""
    tab = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_load_state("networkidle")
    return tab, complaints


def charts_of(html: str) -> list[str]:
    """The SVG of each chart; matplotlib keeps the text of labels as comments."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', html)
    return [base64.b64decode(chart).decode() for chart in found]


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_the_report_in_a_browser(browser: Any, run: Path, width: int) -> None:
    tab, complaints = opened(browser, run / "eval" / "data.test" / "report.html", width)
    assert not complaints
    widths = tab.eval_on_selector_all("img", "all => all.map(i => i.complete ? i.naturalWidth * i.clientWidth : 0)")
    assert len(widths) >= 2 + 8 * 5
    assert min(widths) > 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    text = tab.inner_text("body")
    found = json.loads((run / "eval" / "data.test" / "results.json").read_text(encoding="utf-8"))
    lines = [line.split("\t") for line in text.splitlines()]
    for row in found["results"]:
        cells = [metrics_of(row["task"])[name].text(value) for name, value in row["metrics"].items()]
        assert any(line[-len(cells) :] == cells and row["language"] in line[1] for line in lines), row
    for item in found["comparisons"]:
        assert f"{100 * item['difference']:+.1f}" in text
    assert "Leak, " in text
    assert "3 of 12 pictures" in text
    assert "batch_size: 24" in text
    assert "torch 2.11" in text
    tab.close()


def test_the_report_needs_no_other_file(run: Path) -> None:
    html = (run / "eval" / "data.test" / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    bars, _, _, confused = charts_of(html)
    for language in ("de", "en", "fr"):
        assert f"<!-- {language} -->" in bars
        assert f"<!-- {language} -->" in confused


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "_other $1$"
    shutil.copytree(run, other)
    results = json.loads((other / "eval" / "data.test" / "results.json").read_text(encoding="utf-8"))
    results["results"][0]["metrics"] |= {"image_retrieval_recall@1": 0.123, "text_retrieval_recall@1": None}
    write_json(other / "eval" / "data.test" / "results.json", results)
    out = tmp_path / "both.html"
    done = CliRunner().invoke(cli, ["report", str(run), str(other), "--out", str(out)])
    assert done.exit_code == 0, done.output
    html = out.read_text(encoding="utf-8")
    assert "2 runs side by side" in html
    assert f"Recipe: {other}" in html
    assert html.count('alt="training curves"') == 1
    assert '<td class="">12.3</td>' in html
    assert '<td class="">–</td>' in html
    bars = charts_of(html)[0]
    for folder in (run, other):
        assert f"{folder}, student" in bars


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no eval/DATA.SPLIT/results.json and no metrics.jsonl"),
        ({"results.json": "{"}, "results.json: damaged"),
        ({"results.json": '{"results": [{"language": "en"}]}'}, "results.json: damaged"),
        ({"results.json": '{"results": [], "leakage": [{"model": "x"}]}'}, "results.json: damaged"),
        ({"results.json": '{"results": [], "comparisons": [{"model": "x"}]}'}, "results.json: damaged"),
        ({"results.json": '{"results": [], "task": "retrieval"}'}, "results.json: damaged"),
        ({"results.json": "[]"}, "results.json: damaged"),
        (
            {"results.json": '{"results": [{"language": 1, "tower": 1, "model": 1, "task": 1, "metrics": {}}]}'},
            "results.json: damaged",
        ),
    ],
)
def test_wrong_folders_in_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    out = tmp_path / "report.html"
    assert_one_line(CliRunner().invoke(cli, ["report", str(tmp_path), "--out", str(out)]), message)
    assert not out.exists()


def test_a_damaged_log_and_recipe_leave_what_is_whole(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as log:
        log.write(b'7\n{"step": 3}\n{"stage_index": 0, "stage": "x", "step": "3", "loss": 1}\n\xff\n')
    (tmp_path / "run" / "recipe.yaml").write_bytes(b"about: \xff")
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    assert 'alt="training curves"' in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_text_of_data_is_not_markup() -> None:
    row = {"model": "<b>x</b>", "tower": "student", "language": "en", "task": "translation", "metrics": {"bleu": 1.0}}
    results = {"results": [row], "comparisons": [], "leakage": []}
    page = html.render([html.Report("<script>alert(1)</script>", results)], Gallery())
    assert "<script>" not in page


@pytest.mark.parametrize("name", ["$x^$", "a\udcff", "a\x01", "_日本"])
def test_any_name_and_number_is_shown(tmp_path: Path, name: str) -> None:
    metrics = {"bleu": 1.0, "chrf": float("nan")}
    row = {"model": name, "tower": name, "language": name, "task": "translation", "metrics": metrics}
    results = {"results": [row, row | {"model": "other"}], "comparisons": [], "leakage": []}
    gallery = Gallery({}, ([name, "en"], np.eye(2)))
    html.write([html.Report(name, results)], tmp_path / "report.html", gallery)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(charts_of(page)) == 2
    assert '<td class="">–</td>' in page


def test_a_leak_of_a_baseline_is_shown_once() -> None:
    leak = Leak("coco train", "coco test", "pictures", 3, 12)
    results = {"results": [], "comparisons": [], "leakage": [{"model": "baseline", **as_json([leak])[0]}]}
    settings = {"data": "coco", "task": "retrieval", "split": "test", "protocol": "any"}
    reports = [html.evaluated(Path(name), settings | results, []) for name in ("one", "two")]
    assert html.render(reports, Gallery()).count("baseline: coco test") == 1
