"""report.html: one self-contained page about an evaluation, or about several runs side by side.

It is made from files of runs: results.json, metrics.jsonl and recipe.yaml; an evaluation adds pictures.
"""

import base64
import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mclip_kit import __version__
from mclip_kit.evaluate.base import EVALUATIONS, Gallery, Metric, QueryResult, ResultRows, metrics_of, users_of
from mclip_kit.evaluate.report import charts
from mclip_kit.evaluate.report.contact_sheet import LANGUAGES
from mclip_kit.evaluate.report.results import Report, leak_line
from mclip_kit.evaluate.report.results import evaluated as evaluated
from mclip_kit.evaluate.report.results import read as read
from mclip_kit.evaluate.report.results import read_results as read_results
from mclip_kit.files import printable, write_text

PACKAGES = ("torch", "open_clip_torch", "transformers", "sentencepiece", "numpy")
SIDE = 112  # pixels of a picture on the page
STEP = ("stage_index", "step")  # of metrics.jsonl: the position of a row
CURVES = {"loss": "loss", "score": "validation: the metric that selects the best weights", "lr": "learning rate"}
"""Values of metrics.jsonl -> labels of their axes."""


def write(reports: Sequence[Report], path: Path, gallery: Gallery | None = None) -> None:
    """Write the page, whole or not at all; bytes of names that are not UTF-8 are written as escapes."""
    html = render(reports, gallery or Gallery())
    write_text(path, printable(html))


def render(reports: Sequence[Report], gallery: Gallery) -> str:
    """The page as HTML; it needs no other file."""
    page = Environment(
        loader=PackageLoader("mclip_kit.evaluate", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    title = reports[0].name if len(reports) == 1 else f"{len(reports)} runs side by side"
    return page.render(
        title=title,
        reports=reports,
        leaks=list(dict.fromkeys(leak_line(leak) for report in reports for leak in report.results["leakage"])),
        tables=tables(reports),
        with_protocol=users_of("protocol"),
        metric_words=_metric_words(reports),
        bars=_bars(reports),
        curves=_curves(reports),
        confusion=_confusion(gallery),
        queries={head: [_query(row) for row in rows] for head, rows in gallery.queries.items() if rows},
        credit=gallery.credit,
        environment=environment(reports),
    )


def tables(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """A table for each task of results.json: its heads, and a row for each model, tower and language."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    several = len(_names(reports)) > 1
    for report in reports:
        for row in report.results["results"]:
            table = found.setdefault(_place(row), {"metrics": {}, "rows": []})
            known = metrics_of(row["task"])
            table["metrics"] |= {name: known.get(name) or _unknown(name) for name in row["metrics"]}
            table["rows"].append(row | {"model": _name(reports, report, row)})
    return [_table(place, table["metrics"], table["rows"], several) for place, table in found.items()]


def _metric_words(reports: Sequence[Report]) -> dict[str, str]:
    """Metric of results.json -> what it is, in words."""
    tasks = dict.fromkeys(row["task"] for report in reports for row in report.results["results"])
    return {name: metric.description for task in tasks for name, metric in metrics_of(task).items()}


def _place(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the rows of a table share: task, data, split, and the protocol of those tasks that have one."""
    with_protocol = row["task"] in {EVALUATIONS[name].rows for name in users_of("protocol")}
    return row["task"], row.get("dataset", ""), row.get("split", ""), row.get("protocol", "") if with_protocol else ""


def _title(place: tuple[str, ...]) -> str:
    """The title of a table: `Image-text retrieval, test of emoji`."""
    task, data, split, protocol = place
    words = next((own.words for own in EVALUATIONS.values() if own.rows == task), "") or task.replace("_", " ")
    where = f", {split} of {data}" if data else ""
    return f"{words[:1].upper()}{words[1:]}{where}{f', protocol {protocol}' if protocol else ''}"


def _table(place: tuple[str, ...], metrics: Mapping[str, Metric], rows: ResultRows, several: bool) -> dict[str, Any]:
    cells = [
        [
            *([row["model"]] if several else []),
            *(row["tower"], row["language"] + ("" if row.get("trained") is not False else " °")),
            *(row.get("n_images", ""), row.get("n_captions", "")),
            *(metric.text(row["metrics"].get(name)) for name, metric in metrics.items()),
        ]
        for row in rows
    ]
    return {
        "title": _title(place),
        "labels": ["model"] * several + ["tower", "language", "pictures", "captions"],
        "metrics": list(metrics.values()),
        "as_they_are": [metric.label for metric in metrics.values() if not metric.fraction],
        "rows": cells,
    }


def _unknown(name: str) -> Metric:
    """A metric of results.json that no evaluation of this version has: it is shown as it is."""
    return Metric(name, name.replace("_", " "), fraction=False)


def environment(reports: Sequence[Report]) -> dict[str, str]:
    """The versions of packages, and the machine, that made the page, and the devices that the models ran on."""
    found = {"mclip_kit": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    devices = dict.fromkeys(
        about.get("device", "") for report in reports for about in report.results.get("evaluations", ())
    )
    named = ", ".join(filter(None, devices))
    return found | {"machine": f"{platform.system()} {platform.machine()}"} | ({"evaluated on": named} if named else {})


def _bars(reports: Sequence[Report]) -> dict[str, str]:
    """A chart for each metric that is drawn: label of its axis -> picture."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    several = len(_names(reports)) > 1
    places = {_place(row) for report in reports for row in report.results["results"]}
    for report in reports:
        for row in report.results["results"]:
            name = f"{_name(reports, report, row)}, {row['tower']}" if several else row["tower"]
            where = (
                f" ({_title(_place(row))})" if len({place for place in places if place[0] == row["task"]}) > 1 else ""
            )
            for metric in metrics_of(row["task"]).values():
                value = row["metrics"].get(metric.name)
                if metric.drawn and value is not None and np.isfinite(value):
                    series = found.setdefault(f"{metric.axis}{where}", {}).setdefault(name, {})
                    series[row["language"]] = float(metric.text(value))
    return {label: _inline(charts.bars(scores, label)) for label, scores in found.items()}


def _name(reports: Sequence[Report], report: Report, row: dict[str, Any]) -> str:
    """The name of a row's model; where several runs are compared, their models may have the same path."""
    own = {other["model"] for other in report.results["results"]}
    if len(reports) == 1:
        return str(row["model"])
    return f"{report.name}, {row['model']}" if len(own) > 1 else report.name


def _names(reports: Sequence[Report]) -> set[str]:
    return {_name(reports, report, row) for report in reports for row in report.results["results"]}


def _curves(reports: Sequence[Report]) -> str:
    """Loss, score and learning rate over the steps of all stages; empty if no run has a log."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    stages: list[tuple[str, float]] = []
    for report in reports:
        before, last, stage = 0, 0, None
        for row in report.log:
            if not isinstance(row, dict) or not all(isinstance(row.get(key), int) for key in STEP):
                continue
            if row["stage_index"] != stage:
                before, last, stage = before + last, 0, row["stage_index"]
                for series in panels.values():  # a line ends where its stage ends
                    series.setdefault(report.name, []).append((before, np.nan))
                if report is reports[0]:
                    stages.append((str(row.get("stage", "")), before))
            last = row["step"]
            for name in CURVES:
                if isinstance(row.get(name), int | float) and np.isfinite(row[name]):
                    panels.setdefault(name, {}).setdefault(report.name, []).append((before + last, row[name]))
    ordered = {label: panels[name] for name, label in CURVES.items() if name in panels}
    return _inline(charts.curves(ordered, stages)) if ordered else ""


def _confusion(gallery: Gallery) -> str:
    if gallery.confusion is None or len(gallery.confusion[0]) < 2:
        return ""
    names, shares_LL = gallery.confusion
    return _inline(charts.matrix(names, shares_LL, "a caption in", "has its nearest other caption in"))


def _query(row: QueryResult) -> dict[str, Any]:
    name = LANGUAGES.get(row.language.lower().partition("-")[0].partition("_")[0], "")
    pictures = [{"src": _picture(p), "right": right} for p, right in zip(row.pictures, row.right, strict=True)]
    return {"language": row.language, "name": name, "text": row.query, "pictures": pictures}


def _picture(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    kind = "png" if max(picture.size) < SIDE else "jpeg"
    picture.save(written, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"


def _inline(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
