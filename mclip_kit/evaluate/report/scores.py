"""Scores of a report: names of models, tables of results.json, and charts of its drawn metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mclip_kit.data.languages import TEACHER_LANGUAGE, named_language
from mclip_kit.evaluate.base import EVALUATIONS, FP32, Metric, ResultRows, metrics_of, users_of
from mclip_kit.evaluate.report import charts
from mclip_kit.evaluate.report.results import Report
from mclip_kit.evaluate.retrieval import STUDENT, TEACHER

SIZES = {"n_images": "pictures", "n_captions": "texts", "n_classes": "classes"}
"""Counts of a row of results.json -> the heads of their columns."""
PLACE = ("dataset", "split", "protocol", "precision")
"""Keys of rows that tell evaluations of a task apart."""
NEVER = "never trained"
Cells = dict[str, dict[str, tuple[str, Mapping[str, Any]]]]
"""Language -> series of a chart -> name of the model, and the row of results.json."""


def name_of(reports: Sequence[Report], report: Report, row: Mapping[str, Any]) -> str:
    """The name of a row's model; where several runs are compared, their models may have the same path."""
    if len(reports) == 1:
        return str(row["model"])
    own = {other["model"] for other in report.results["results"]}
    return f"{report.name}, {row['model']}" if len(own) > 1 else report.name


def names(reports: Sequence[Report]) -> list[str]:
    """The models of a page, each once."""
    return list(dict.fromkeys(name_of(reports, report, row) for report, row in rows_of(reports)))


def rows_of(reports: Sequence[Report]) -> list[tuple[Report, dict[str, Any]]]:
    """Every row of results.json, with its report."""
    return [(report, row) for report in reports for row in report.results["results"]]


def place_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the rows of a table share: task, data, split, precision, and the protocol of those tasks that have one."""
    with_protocol = row["task"] in {EVALUATIONS[name].rows for name in users_of("protocol")}
    place = row["task"], row.get("dataset", ""), row.get("split", ""), row.get("precision", FP32)
    return (*place, row.get("protocol", "") if with_protocol else "")


def title_of(place: tuple[str, ...]) -> str:
    """The title of a table: `Image-text retrieval, test of emoji`."""
    task, data, split, precision, protocol = place
    words = next((own.words for own in EVALUATIONS.values() if own.rows == task), "") or task.replace("_", " ")
    where = f", {split} of {data}" if data else ""
    how = f", protocol {protocol}" * bool(protocol) + f", {precision}" * (precision != FP32)
    return f"{words[:1].upper()}{words[1:]}{where}{how}"


def is_trained(row: Mapping[str, Any]) -> bool:
    """Whether a row's language was trained, as far as is known."""
    return row.get("trained") is not False


def value_of(row: Mapping[str, Any], metric: Metric) -> float | None:
    """A finite value of a row, in the unit of tables and charts: percent for fractions; else None."""
    value = row["metrics"].get(metric.name)
    if value is None or not math.isfinite(value):
        return None
    return float(value) * (100 if metric.fraction else 1)


def interval_of(reports: Sequence[Report], name: str, rows: Sequence[Mapping[str, Any]], metric: Metric) -> Any:
    """The ends of the interval of the mean of a model's rows, in the unit of `value_of`; None if it is not known.

    Args:
        name: of the model, see `name_of`.
        rows: of one tower and one evaluation.
    """
    about = {key: rows[0].get(key) for key in ("tower", *PLACE)} | {"metric": metric.name}
    languages = {row["language"] for row in rows}
    for report in reports:
        for item in report.results["intervals"]:
            same = {*item["languages"]} == languages and {key: item.get(key) for key in about} == about
            if same and name_of(reports, report, item) == name:
                scale = 100 if metric.fraction else 1
                return scale * item["low"], scale * item["high"]
    return None


def tables(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """A table for each task of results.json: its heads, and a row for each model, tower and language."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    several = len(names(reports)) > 1
    for report, row in rows_of(reports):
        table = found.setdefault(place_of(row), {"metrics": {}, "rows": []})
        known = metrics_of(row["task"])
        table["metrics"] |= {name: known.get(name) or _unknown(name) for name in row["metrics"]}
        table["rows"].append(row | {"model": name_of(reports, report, row)})
    return [_table(place, list(table["metrics"].values()), table["rows"], several) for place, table in found.items()]


def _unknown(name: str) -> Metric:
    """A metric of results.json that no evaluation of this version has: it is shown as it is."""
    return Metric(name, name.replace("_", " "), fraction=False, averaged=False)


def _table(place: tuple[str, ...], metrics: Sequence[Metric], rows: ResultRows, several: bool) -> dict[str, Any]:
    sizes = {key: head for key, head in SIZES.items() if any(key in row for row in rows)}
    heads = [{"label": label, "title": "", "number": False} for label in ["language", *["model"] * several, "tower"]]
    heads += [{"label": metric.label, "title": metric.description, "number": True} for metric in metrics]
    heads += [{"label": head, "title": "", "number": True} for head in sizes.values()]
    return {
        "title": title_of(place),
        "heads": heads,
        "rows": [_cells(row, metrics, sizes, several) for row in rows],
        "means": _means(rows, metrics, len(sizes), several),
        "as_they_are": [metric.label for metric in metrics if not metric.fraction],
        "metrics": len(metrics),
        "numbers": len(metrics) + len(sizes),
        "never": any(not is_trained(row) for row in rows),
    }


def _cells(
    row: Mapping[str, Any], metrics: Sequence[Metric], sizes: Mapping[str, str], several: bool
) -> list[dict[str, Any]]:
    """Each cell's text, and the number that it is sorted by."""
    texts = [
        named_language(row["language"]) + ("" if is_trained(row) else " °"),
        *[row["model"]] * several,
        row["tower"],
    ]
    cells: list[dict[str, Any]] = [{"text": text} for text in texts]
    for metric in metrics:
        cells.append({"text": metric.text(row["metrics"].get(metric.name)), "value": value_of(row, metric)})
    for key in sizes:
        count = row.get(key)
        cells.append({"text": f"{count:,}" if isinstance(count, int) else "", "value": count})
    return cells


def _means(rows: ResultRows, metrics: Sequence[Metric], sizes: int, several: bool) -> list[list[str]]:
    """A line for each model's student, of its trained languages and of the others, where there are several."""
    groups: dict[tuple[str, bool], ResultRows] = {}
    for row in rows:
        if row["tower"] == STUDENT:
            groups.setdefault((row["model"], is_trained(row)), []).append(row)
    lines = []
    for (model, trained), own in groups.items():
        if len(own) > 1:
            known = any("trained" in row for row in own)
            label = f"mean of {len(own)}" + (f" {'trained' if trained else NEVER}" if known else "")
            texts = [metric.text(mean(own, metric)) if metric.averaged else "" for metric in metrics]
            lines.append([label, *[model] * several, STUDENT, *texts, *[""] * sizes])
    return lines


def mean(rows: Sequence[Mapping[str, Any]], metric: Metric) -> float | None:
    """The mean of a metric over rows, as results.json has it; None if a row has no finite value."""
    values = [row["metrics"].get(metric.name) for row in rows]
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    return float(sum(values) / len(values))


def drawn_charts(reports: Sequence[Report], skipped: Sequence[tuple[Any, str]] = ()) -> list[dict[str, Any]]:
    """A chart for each drawn metric of each table: title, names of the series, SVG.

    Args:
        skipped: places and names of metrics that are drawn elsewhere.
    """
    several = len(names(reports)) > 1
    found: dict[Any, tuple[Metric, Cells]] = {}
    for report, row in rows_of(reports):
        name = name_of(reports, report, row)
        series = f"{name}, {row['tower']}" if several else str(row["tower"])
        for metric in metrics_of(row["task"]).values():
            if metric.drawn and value_of(row, metric) is not None and (place_of(row), metric.name) not in skipped:
                _, cells = found.setdefault((place_of(row), metric.name), (metric, {}))
                cells.setdefault(row["language"], {})[series] = name, row
    return [
        _chart(reports, f"scores-{number}", title_of(place), metric, cells)
        for number, ((place, _), (metric, cells)) in enumerate(found.items(), 1)
    ]


def _is_other(series: str) -> bool:
    """Whether a series is not of a student, so that it comes after those."""
    return series.rpartition(", ")[2] != STUDENT


def _chart(reports: Sequence[Report], key: str, where: str, metric: Metric, cells: Cells) -> dict[str, Any]:
    title = f"{metric.axis[:1].upper()}{metric.axis[1:]}"
    series = sorted(dict.fromkeys(name for own in cells.values() for name in own), key=_is_other)
    groups = []
    for language, own in cells.items():
        ends = {name: interval_of(reports, model, [row], metric) for name, (model, row) in own.items()}
        values = {name: value_of(row, metric) or 0.0 for name, (_, row) in own.items()}
        known = {name: both for name, both in ends.items() if both}
        groups.append(charts.Group(named_language(language), values, ranges=known))
    groups.sort(key=lambda group: -group.values.get(series[0], -1.0))
    return {
        "title": title,
        "where": where,
        "series": series,
        "ranges": any(low < high for group in groups for low, high in group.ranges.values()),
        "svg": charts.bars(key, f"{title}, by language. {where}", series, groups),
    }


def is_plain(row: Mapping[str, Any]) -> bool:
    """Whether a row is of the student, or of the teacher's own English, which have a place in the first chart."""
    return row["tower"] == STUDENT or (row["tower"] == TEACHER and row["language"] == TEACHER_LANGUAGE)
