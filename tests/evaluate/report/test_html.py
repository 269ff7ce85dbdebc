"""report.html, opened in a real browser where there is one."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.leakage import Leak, as_json
from mclip_kit.evaluate.base import metrics_of
from mclip_kit.evaluate.gallery import Gallery, QueryResult
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


def page_of(run: Path) -> tuple[str, dict[str, Any]]:
    """The page of an evaluation, and its results.json."""
    folder = run / "eval" / "data.test"
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page, json.loads((folder / "results.json").read_text(encoding="utf-8"))


def charts_of(page: str) -> dict[str, ElementTree.Element]:
    """Each chart of a page, by its id."""
    found = re.findall(r'(?m)^<svg class="chart[^"]*".*</svg>$', page)
    return {chart.attrib["id"]: chart for chart in map(ElementTree.fromstring, found)}


def described(page: str, key: str) -> str:
    """The description of a chart, which has all of its figures."""
    return charts_of(page)[key].findtext("desc") or ""


def test_the_first_chart_has_the_figures_of_results_json(run: Path) -> None:
    page, results = page_of(run)
    recalls = {
        (row["tower"], row["language"]): 100 * row["metrics"]["image_retrieval_recall@1"] for row in results["results"]
    }
    text = described(page, "headline-chart")
    ends = {
        (row["tower"], *row["languages"]): f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        for row in results["intervals"]
        if row["metric"] == "image_retrieval_recall@1"
    }
    assert set(ends) == {("student", code) for code in ("en", "de", "fr")} | {
        ("student", "en", "de", "fr"),
        ("teacher", "en"),
    }
    for code, name in (("de", "German"), ("fr", "French"), ("en", "English")):
        between = f" (95% interval {ends['student', code]})" if recalls["student", code] else ""
        assert f"{name} ({code}): {recalls['student', code]:.1f}{between}" in text
    assert f"teacher's English: {recalls['teacher', 'en']:.1f}" in text
    mean = np.mean([recalls["student", code] for code in ("en", "de", "fr")])
    lead = re.sub(r"<[^>]*>", "", page[page.index('<p class="lead"') :])
    assert lead.startswith(
        f"{mean:.1f}% of captions find their own picture first (text-to-image R@1, mean of 3 languages; "
        f"95% interval {ends['student', 'en', 'de', 'fr']})"
    )
    assert f"the teacher's own English text tower {recalls['teacher', 'en']:.1f}%." in lead


def test_the_report_on_a_phone(browser: Any, run: Path) -> None:
    tab, complaints = opened(browser, run / "eval" / "data.test" / "report.html", PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE
    widths = tab.eval_on_selector_all("img", "all => all.map(i => i.complete ? i.naturalWidth * i.clientWidth : 0)")
    assert len(widths) >= 8 * 5
    assert min(widths) > 0
    boxes = tab.eval_on_selector_all(
        "svg text",
        "all => all.map(t => [t.textContent, t.getBoundingClientRect().left, t.getBoundingClientRect().right])",
    )
    assert not [box for box in boxes if box[1] < 0 or box[2] > PHONE]
    assert not complaints
    tab.close()


def test_the_tables_of_the_report_sort_by_keyboard(browser: Any, run: Path) -> None:
    tab, complaints = opened(browser, run / "eval" / "data.test" / "report.html", 1280)
    table = tab.locator("table.sortable").first
    head = table.locator("th", has_text="T2I R@5")
    place = table.locator("thead th").all_inner_texts().index(head.inner_text())

    def column() -> list[float]:
        return [float(text) for text in table.locator(f"tbody td:nth-child({place + 1})").all_inner_texts()]

    before, last = column(), table.locator("tfoot").inner_text()
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert (column(), head.get_attribute("aria-sort")) == (sorted(before, reverse=True), "descending")
    tab.keyboard.press("Space")
    assert (column(), head.get_attribute("aria-sort")) == (sorted(before), "ascending")
    table.locator("th", has_text="language").locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert table.locator("tbody th").all_inner_texts() == sorted(table.locator("tbody th").all_inner_texts())
    assert table.locator("tfoot").inner_text() == last
    assert not complaints
    tab.close()


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (colour) => rgb(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const colour = (part) => getComputedStyle(part)[part instanceof SVGElement ? "fill" : "color"];
  const back = (part) => { const own = getComputedStyle(part).backgroundColor;
    return rgb(own)[3] ? own : back(part.parentElement); };
  const texts = [...document.querySelectorAll("p, th, td, a, li, pre, summary, figcaption, svg text:not(.in)")];
  const named = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const bars = [...Array(8).keys()].map((number) => ratio(named("--on"), named(`--s${number}`)));
  const ratios = [...bars, ...texts.map((text) => ratio(colour(text), back(text)))];
  return [back(document.body), Math.min(...ratios), ratios.length];
}"""


def test_the_report_is_readable_in_light_in_dark_and_on_paper(browser: Any, run: Path) -> None:
    tab, complaints = opened(browser, run / "eval" / "data.test" / "report.html", PHONE)
    papers = []
    for look in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"color_scheme": "dark", "media": "print"}):
        tab.emulate_media(**look)
        paper, contrast, texts = tab.evaluate(CONTRAST)
        assert texts > 100
        papers.append(paper)
        assert contrast >= 4.5, look  # WCAG 2.2, 1.4.3
    assert papers == ["rgb(255, 255, 255)", "rgb(17, 24, 39)", "rgb(255, 255, 255)"]
    assert not complaints
    tab.close()


def test_exact_figures_leaks_and_hashes_are_on_the_page(run: Path) -> None:
    page, found = page_of(run)
    for row in found["results"]:
        cells = [metrics_of(row["task"])[name].text(value) for name, value in row["metrics"].items()]
        written = "".join(rf'<td class="number" data-value="[^"]*">{cell}</td>' for cell in cells)
        assert re.search(rf"\({row['language']}\)</th><td>{row['tower']}</td>{written}", page), row
    for item in found["comparisons"]:
        texts = [re.escape(f"{100 * item[key]:+.1f}") for key in ("difference", "low", "high")]
        assert re.search("".join(rf'<td class="number" data-value="[^"]*">{text}</td>' for text in texts), page), item
    assert "Leak</strong>, " in page
    assert "3 of 12 pictures" in page
    assert "batch_size: 24" in page
    assert "torch 2.11" in page
    assert f'<pre class="command">{found["command"]}</pre>' in page
    assert len(found["hashes"]) == 2
    assert all(re.search(f"<code>{value}</code>", page) for value in found["hashes"].values())


def test_the_recorded_command_gives_the_recorded_results(run: Path, tmp_path: Path) -> None:
    _, found = page_of(run)
    first, *words = shlex.split(found["command"])
    assert first == "mclip-kit"
    again = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    other = json.loads((tmp_path / "again" / "results.json").read_text(encoding="utf-8"))
    assert other.pop("command") == f"{found.pop('command')} --out {tmp_path / 'again'}"
    assert other == found


def test_the_report_needs_no_other_file(run: Path) -> None:
    page, _ = page_of(run)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert all(f'id="{source[1:]}"' in page for source in sources if source.startswith("#"))


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
    names = [pair["picture"] for pair in results["confusions"]]
    assert names
    assert all(html.count(f'alt="right picture, {name}"') == 2 * names.count(name) for name in names)
    assert html.count('id="curve-loss"') == 1
    assert ">12.3</td>" in html
    assert '<td class="number" data-value="">–</td>' in html
    text = described(html, "headline-chart")
    for folder in (run, other):
        assert f"{folder} " in text
        assert f'<span class="model">{folder}:</span>' in html


def test_data_that_is_gone_leaves_names_without_pictures(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "eval" / "data.test", tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "eval" / "results.json", results | {"folder": str(tmp_path / "gone")})
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "eval"), "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'gone'}: its pictures are not shown: " in done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert f"right: {results['confusions'][0]['picture']}</figcaption>" in page


def test_a_picture_that_is_gone_hides_no_other_one(run: Path, squares: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "squares"
    tiny.without_hashes(Path(shutil.copytree(squares, prepared)))
    (tmp_path / "files").mkdir()
    _, results = page_of(run)
    first = results["confusions"][0]["picture"]
    table = (prepared / "images.tsv").read_text(encoding="utf-8").splitlines()
    for place, pixels in enumerate(np.load(prepared / "images.npy"), 1):
        name = table[place].partition("\t")[0]
        if name != first:
            Image.fromarray(pixels).save(tmp_path / "files" / f"{name}.png")
        table[place] += f"\t{tmp_path / 'files' / name}.png"
    (prepared / "images.tsv").write_text("\n".join([f"{table[0]}\tfile", *table[1:], ""]), encoding="utf-8")
    (prepared / "images.npy").unlink()
    write_json(tmp_path / "eval" / "results.json", results | {"folder": str(prepared), "hashes": {}})
    words = ["report", str(tmp_path / "eval"), "--out", str(tmp_path / "report.html")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert f"{first} is not shown: {tmp_path / 'files' / first}.png: not a readable picture" in done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" in page
    assert f'picture, {first}"' not in page
    write_json(tmp_path / "eval" / "results.json", results | {"folder": str(prepared)})
    again = CliRunner().invoke(cli, words)
    assert f"{prepared}: its pictures are not shown: it was prepared again since the evaluation\n" in again.output
    assert "<img" not in (tmp_path / "report.html").read_text(encoding="utf-8")


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
        ({"results.json": '{"results": [], "confusions": [{"model": "x"}]}'}, "results.json: damaged"),
        ({"results.json": '{"results": [], "language_confusion": [{"languages": ["de"]}]}'}, "results.json: damaged"),
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda results: results["results"][0].update(dataset=[]),
        lambda results: results["confusions"][0].update(folder={}),
        lambda results: results["widths"].append(results["results"][0] | {"dims": "4"}),
        lambda results: results["language_confusion"][0]["shares"][0].__setitem__(0, 10**400),
    ],
)
def test_damage_inside_an_entry_is_one_line(run: Path, tmp_path: Path, damage: Callable[[Any], None]) -> None:
    _, results = page_of(run)
    damage(results)
    write_json(tmp_path / "results.json", results)
    out = tmp_path / "report.html"
    assert_one_line(CliRunner().invoke(cli, ["report", str(tmp_path), "--out", str(out)]), "results.json: damaged")
    assert not out.exists()


def test_a_damaged_log_and_recipe_leave_what_is_whole(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as log:
        log.write(b'7\n{"step": 3}\n{"stage_index": 0, "stage": "x", "step": "3", "loss": 1}\n\xff\n')
    (tmp_path / "run" / "recipe.yaml").write_bytes(b"about: \xff")
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    assert 'id="curve-loss"' in (tmp_path / "report.html").read_text(encoding="utf-8")


def everything(name: str) -> tuple[html.Report, Gallery]:
    """A report that has all there is on a page, with every text of the data a given one."""
    metrics = {"image_retrieval_recall@1": 0.5, name: float("nan")}
    row: dict[str, Any] = {"model": name, "tower": "student", "language": name, "metrics": metrics}
    row |= {"task": "zeroshot_retrieval"}
    row["strata"] = {name: metrics, "others": metrics}
    rows = [row, row | {"tower": name}, row | {"trained": False, "language": f"{name} 2"}]
    item = {"model": name, "baseline": name, "language": name, "metric": name, "difference": 0, "low": -1, "high": 1}
    pair = {
        "model": name,
        "picture": name,
        "found": name,
        "count": 1,
        "captions": 2,
        "languages": [name],
        "query": name,
    }
    leak = {"model": name, "trained": name, "held_out": name, "kind": "texts", "count": 1, "of": 2}
    results = {"data": name, "task": "retrieval", "split": name, "protocol": name, "results": rows, "leakage": [leak]}
    results |= {
        "comparisons": [item],
        "confusions": [pair | {"captions": 2, "language": name}],
        "device": name,
        "command": name,
    }
    results |= {"language_confusion": [{"model": name, "languages": [name, "en"], "shares": [[0.5, 0.5], [1, 0]]}]}
    results |= {"overlaps": [name], "environment": {name: name}, "hashes": {name: name}}
    log = [{"stage_index": 0, "stage": name, "step": step, "loss": 1.0} for step in (0, 1)]
    report = html.evaluated(Path(name), results, log)
    picture = np.zeros((8, 8, 3), np.uint8)
    gallery = Gallery({name: [QueryResult(name, name, [picture], [True])]}, {(name, name): picture}, name, name)
    return replace(report, recipe=name, recipe_file=Path(name)), gallery


def test_pictures_are_those_of_their_data_only() -> None:
    one, gallery = everything("one")
    two, _ = everything("two")
    page = html.render([one, two], gallery)
    assert page.count('alt="right picture, one"') == 1
    assert 'alt="right picture, two"' not in page  # the gallery is of the other data
    assert page.count("found: two</figcaption>") == 1
    assert "one: 1 of 2 captions: " in page


def test_text_of_data_is_not_markup() -> None:
    hostile = "\"'><script>alert(1)</script><b onload=x>{{ 7 * 7 }}"
    page = html.render([everything(hostile)[0], everything("other")[0]], everything(hostile)[1])
    assert page.count("<script>") == 1  # the page's own
    assert "<b onload" not in page
    assert "{{ 7 * 7 }}" in page
    plain = html.render([everything("plain")[0], everything("other")[0]], everything("plain")[1])
    assert re.findall(r"<([a-z]+)", page) == re.findall(r"<([a-z]+)", plain)


@pytest.mark.parametrize("name", ["$x^$", "a\udcff", "a\x01", "_日本"])
def test_any_name_and_number_is_shown(tmp_path: Path, name: str) -> None:
    html.write([everything(name)[0]], tmp_path / "report.html", everything(name)[1])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(charts_of(page)) == {"headline-chart", "strata-chart", "scores-1", "compared-1", "curve-loss"}
    assert '<td class="number" data-value="">–</td>' in page


def test_of_two_evaluations_of_the_same_data_the_last_counts(tmp_path: Path) -> None:
    about = {"data": "coco", "task": "retrieval", "split": "test", "protocol": "any", "results": []}
    item = {"model": "m", "baseline": "b", "language": "de", "metric": "mean_recall", "low": 0.0, "high": 0.2}
    confused = {"model": "m", "languages": ["de", "en"]}
    pair = {"model": "m", "found": "x", "count": 1, "captions": 2, "languages": ["de"], "language": "de", "query": "q"}
    for number, share in enumerate((0.1, 0.3)):
        lists = {
            "comparisons": [item | {"difference": share}],
            "confusions": [pair | {"picture": name} for name in ("both", f"only {number}")],
            "language_confusion": [confused | {"shares": [[share, 1 - share], [1, 0]]}],
        }
        write_json(tmp_path / "eval" / f"coco.test{number}" / "results.json", about | lists)
    found = html.read(tmp_path, []).results
    assert [one["difference"] for one in found["comparisons"]] == [0.3]
    assert [one["shares"][0][0] for one in found["language_confusion"]] == [0.3]
    assert [one["picture"] for one in found["confusions"]] == ["both", "only 1"]
    assert len(found["evaluations"]) == 2


@pytest.mark.parametrize(("checked", "said"), [(["m"], "names none"), ([], "not known of m,"), (None, "")])
def test_whether_leaks_were_looked_for_is_said(checked: list[str] | None, said: str) -> None:
    row = {"model": "m", "tower": "student", "language": "de", "task": "translation", "metrics": {"bleu": 1.0}}
    settings = {"data": "coco", "task": "translation", "split": "test", "protocol": "any"}
    results = settings | {"results": [row], "leakage": [], "comparisons": []}
    results |= {} if checked is None else {"leakage_checked": checked}
    page = html.render([html.evaluated(Path("m"), results, [])], Gallery())
    assert (said in page) if said else ("Leaks: " not in page)


def test_a_leak_of_a_baseline_is_shown_once() -> None:
    leak = Leak("coco train", "coco test", "pictures", 3, 12)
    results = {"results": [], "comparisons": [], "leakage": [{"model": "baseline", **as_json([leak])[0]}]}
    settings = {"data": "coco", "task": "retrieval", "split": "test", "protocol": "any"}
    reports = [html.evaluated(Path(name), settings | results, []) for name in ("one", "two")]
    assert html.render(reports, Gallery()).count("baseline: coco test") == 1
