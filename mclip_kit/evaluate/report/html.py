"""report.html: one self-contained page about an evaluation, or about several runs side by side.

It is made from files of runs: results.json, metrics.jsonl and recipe.yaml; an evaluation adds pictures.
"""

import base64
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mclip_kit import __version__
from mclip_kit.data.leakage import Leak
from mclip_kit.errors import DataError, first_line
from mclip_kit.evaluate.base import Gallery, Metric, QueryResult, ResultRows, metrics_of, users_of
from mclip_kit.evaluate.report import charts
from mclip_kit.evaluate.report.contact_sheet import LANGUAGES
from mclip_kit.files import write_text
from mclip_kit.layout import EVALUATION, METRICS, RECIPE, RESULTS

PACKAGES = ("torch", "open_clip_torch", "transformers", "sentencepiece", "numpy")
SIDE = 112  # pixels of a picture on the page
LISTS = ("results", "comparisons", "leakage")  # lists of results.json
STEP = ("stage_index", "step")  # of metrics.jsonl: the position of a row
CURVES = ("loss", "score", "lr")  # of metrics.jsonl; score decides which weights are best


@dataclass(frozen=True)
class Report:
    """One run or evaluation.

    Attributes:
        name: its name on the page.
        results: the content of results.json.
        log: rows of metrics.jsonl.
        recipe: the text of the resolved recipe.
    """

    name: str
    results: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""


def evaluated(model: Path, results: dict[str, Any], log: list[dict[str, Any]]) -> Report:
    """The part of an evaluation that is about one model, with the recipe next to the model folder.

    Args:
        results: the content of results.json, of any number of models.
        log: of the run that made the model; empty if there is none.
    """
    own = {key: [row for row in results[key] if row["model"] == str(model)] for key in ("results", "comparisons")}
    return Report(str(model), results | own, log, _recipe(model.resolve().parent))


def read(folder: Path, log: list[dict[str, Any]]) -> Report:
    """Read the folder of a run or of an evaluation.

    Args:
        log: of the run; empty if there is none.
    Raises:
        DataError: the folder has no results and there is no log, or results.json is damaged.
    """
    file = next((f for f in (folder / EVALUATION / RESULTS, folder / RESULTS) if f.is_file()), None)
    if file is None and not log:
        raise DataError(
            f"{folder}: no {EVALUATION}/{RESULTS} and no {METRICS}; give a run's folder, or run mclip-kit eval first"
        )
    results = read_results(file) if file else {key: [] for key in LISTS}
    return Report(str(folder), results, log, _recipe(folder))


def _recipe(run: Path) -> str:
    written = run / RECIPE
    return written.read_text(encoding="utf-8", errors="replace") if written.is_file() else ""


def read_results(file: Path) -> dict[str, Any]:
    """Read and check a results.json.

    Raises:
        DataError: it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for row in content["results"]:
            _ = "".join(row[key] for key in ("language", "tower", "model", "task"))
            _ = [Metric("", "").text(value) for value in row["metrics"].values()]
        whole = {"comparisons": [], "leakage": [], **content}
        for leak in whole["leakage"]:
            leak_line(leak)
        for item in whole["comparisons"]:
            _ = item["model"], item["baseline"], item["language"], item["metric"]
            _ = [f"{item[key]:+.1f}" for key in ("difference", "low", "high")]
        _ = [whole[key] for key in ("data", "task", "split", "protocol")]
        return whole
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({first_line(error)}); run mclip-kit eval again") from None


def write(reports: Sequence[Report], path: Path, gallery: Gallery | None = None) -> None:
    """Write the page, whole or not at all; bytes of names that are not UTF-8 are written as escapes."""
    html = render(reports, gallery or Gallery())
    write_text(path, html.encode(errors="backslashreplace").decode())


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
        bars=_bars(reports),
        curves=_curves(reports),
        confusion=_confusion(gallery),
        queries={head: [_query(row) for row in rows] for head, rows in gallery.queries.items() if rows},
        credit=gallery.credit,
        environment=environment(),
    )


def leak_line(leak: dict[str, Any]) -> str:
    """An entry of results.json's `leakage` as a sentence."""
    own = dict(leak)
    return f"{own.pop('model')}: {Leak(**own).line()}"


def tables(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """A table for each task of results.json: its heads, and a row for each model, tower and language."""
    found: dict[str, dict[str, Any]] = {}
    several = len(_names(reports)) > 1
    for report in reports:
        for row in report.results["results"]:
            table = found.setdefault(row["task"], {"metrics": {}, "rows": []})
            known = metrics_of(row["task"])
            table["metrics"] |= {name: known.get(name) or _unknown(name) for name in row["metrics"]}
            table["rows"].append(row | {"model": _name(reports, report, row)})
    return [_table(task, table["metrics"], table["rows"], several) for task, table in found.items()]


def _table(task: str, metrics: Mapping[str, Metric], rows: ResultRows, several: bool) -> dict[str, Any]:
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
        "task": task.replace("_", " "),
        "labels": ["model"] * several + ["tower", "language", "pictures", "captions"],
        "metrics": list(metrics.values()),
        "as_they_are": [metric.label for metric in metrics.values() if not metric.fraction],
        "rows": cells,
    }


def _unknown(name: str) -> Metric:
    """A metric of results.json that no evaluation of this version has: it is shown as it is."""
    return Metric(name, name.replace("_", " "), fraction=False)


def environment() -> dict[str, str]:
    """The versions of packages, and the machine, that made the page."""
    import torch

    found = {"mclip_kit": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return found | {"machine": f"{platform.system()} {platform.machine()}", "device": device}


def _bars(reports: Sequence[Report]) -> dict[str, str]:
    """A chart for each metric that is drawn: label of its axis -> picture."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    several = len(_names(reports)) > 1
    for report in reports:
        for row in report.results["results"]:
            name = f"{_name(reports, report, row)}, {row['tower']}" if several else row["tower"]
            for metric in metrics_of(row["task"]).values():
                value = row["metrics"].get(metric.name)
                if metric.drawn and value is not None and np.isfinite(value):
                    series = found.setdefault(metric.axis, {}).setdefault(name, {})
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
    ordered = {name: panels[name] for name in CURVES if name in panels}
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
