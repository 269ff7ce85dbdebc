"""The beginning of a report: how good a model is in its languages, against the teacher's English, where it fails."""

from collections.abc import Mapping, Sequence
from typing import Any

from mclip_kit.data.languages import TEACHER_LANGUAGE, named_language
from mclip_kit.evaluate.base import EVALUATIONS, Metric
from mclip_kit.evaluate.report import charts, scores
from mclip_kit.evaluate.report.results import Report
from mclip_kit.evaluate.retrieval import STUDENT, TEACHER

Row = Mapping[str, Any]
CHOICES = {
    "zeroshot_retrieval": ("n_images", "pictures"),
    "zeroshot_classification": ("n_classes", "classes"),
    "bitext_retrieval": ("n_captions", "sentences"),
}
"""Task of results.json -> the count of a row among which one is drawn by chance, and what is counted."""
FEW = 100  # choices below which one of them moves a score by more than a point
WEAKEST = 3  # languages that are named


def headline(reports: Sequence[Report]) -> dict[str, Any] | None:
    """The first sentences and the first chart; None without a score of a student.

    They are about the first drawn metric of the first evaluation, in the order of `EVALUATIONS`.
    """
    found = [(report, row) for report, row in scores.rows_of(reports) if row["tower"] == STUDENT]
    for own in EVALUATIONS.values():
        metric = next((metric for metric in own.metrics.values() if metric.drawn), None)
        known = [
            row for _, row in found if row["task"] == own.rows and metric and scores.value_of(row, metric) is not None
        ]
        if metric and known:
            return _headline(reports, scores.place_of(known[0]), metric)
    return None


def _headline(reports: Sequence[Report], place: tuple[str, ...], metric: Metric) -> dict[str, Any]:
    rows = [(report, row) for report, row in scores.rows_of(reports) if scores.place_of(row) == place]
    rows = [(report, row) for report, row in rows if scores.value_of(row, metric) is not None]
    students, teachers = _towers([(scores.name_of(reports, report, row), row) for report, row in rows])
    same = {metric.text(row["metrics"][metric.name]) for row in teachers.values()}
    title = f"{metric.axis[:1].upper()}{metric.axis[1:]}"
    return {
        "sentences": [
            _sentence(metric, own, teachers.get(name))
            | {"model": name if len(students) > 1 else "", "interval": _interval(reports, name, own, metric)}
            for name, own in students.items()
        ],
        **_chance(place[0], [row for own in students.values() for row in own], metric),
        "title": title,
        "where": scores.title_of(place),
        "ranges": any(_interval(reports, name, [row], metric) for name, own in students.items() for row in own),
        "series": list(students),
        "svg": _chart(reports, title, metric, students, next(iter(teachers.values())) if len(same) == 1 else None),
        "strata": _strata(title, metric, students),
        "shown": (place, metric.name),
        "is_all": all(scores.is_plain(row) for _, row in rows) and len(same) < 2,
    }


def _towers(rows: Sequence[tuple[str, Row]]) -> tuple[dict[str, list[Row]], dict[str, Row]]:
    """Model -> the rows of its student; model -> the row of its teacher's English."""
    students: dict[str, list[Row]] = {}
    for model, row in rows:
        if row["tower"] == STUDENT:
            students.setdefault(model, []).append(row)
    own = [(model, row) for model, row in rows if row["tower"] == TEACHER]
    return students, {model: row for model, row in own if row["language"] == TEACHER_LANGUAGE}


def _sentence(metric: Metric, rows: Sequence[Row], teacher: Row | None) -> dict[str, Any]:
    """The parts of a model's sentence: means, the teacher's figure, and the weakest and the best language."""
    trained = [row for row in rows if scores.is_trained(row)]
    others = [row for row in rows if not scores.is_trained(row)]
    first = _first(rows)
    ordered = sorted(rows, key=lambda row: scores.value_of(row, metric) or 0.0)
    unit = "%" if metric.fraction else ""
    best = _named(metric, ordered[-1], unit)
    lowest = [_named(metric, row, unit) for row in ordered[: min(WEAKEST, len(rows) - 1)]]
    return {
        "mean": metric.text(scores.mean(first, metric)) + unit,
        "what": metric.sentence or f"is the {metric.description}",
        "metric": metric.description,
        "languages": len(first),
        "one": named_language(first[0]["language"]),
        "trained": bool(trained) or "trained" not in first[0],
        "teacher": metric.text(teacher["metrics"][metric.name]) + unit if teacher else "",
        "others": metric.text(scores.mean(others, metric)) + unit if trained and others else "",
        "n_others": len(others),
        "weakest": [one for one in lowest if one["value"] != best["value"]],
        "best": best,
    }


def _first(rows: Sequence[Row]) -> list[Row]:
    """The rows whose mean a sentence begins with: the trained languages, or all if there are none."""
    return [row for row in rows if scores.is_trained(row)] or list(rows)


def _interval(reports: Sequence[Report], name: str, rows: Sequence[Row], metric: Metric) -> str:
    """The interval of the mean that a sentence begins with; empty if it is not known, or has no length."""
    low, high = scores.interval_of(reports, name, _first(rows), metric) or (0.0, 0.0)
    return f"{low:.1f} to {high:.1f}" if high > low else ""


def _named(metric: Metric, row: Row, unit: str) -> dict[str, Any]:
    return {
        "language": named_language(row["language"]),
        "value": metric.text(row["metrics"][metric.name]) + unit,
        "trained": scores.is_trained(row),
    }


def _strata(title: str, metric: Metric, students: Mapping[str, Sequence[Row]]) -> dict[str, Any] | None:
    """Bars of the strata of the pictures, of the mean over the trained languages; None if there are none."""
    trained = any(scores.is_trained(row) for rows in students.values() for row in rows)
    values: dict[str, dict[str, float]] = {}
    for name, rows in students.items():
        own = [row for row in rows if scores.is_trained(row) == trained]
        for stratum in dict.fromkeys(stratum for row in own for stratum in row.get("strata") or {}):
            parts = [{"metrics": row["strata"][stratum]} for row in own if stratum in (row.get("strata") or {})]
            value = scores.value_of({"metrics": {metric.name: scores.mean(parts, metric)}}, metric)
            if value is not None:
                values.setdefault(stratum, {})[name] = value
    groups = [charts.Group(stratum, own) for stratum, own in values.items()]
    if not groups:
        return None
    return {"trained": trained, "svg": charts.bars("strata-chart", f"{title}, by kind of picture", [*students], groups)}


def _chance(task: str, rows: Sequence[Row], metric: Metric) -> dict[str, Any]:
    """The largest number of choices, what they are, and the score of a draw by chance; empty where it is not known."""
    key, what = CHOICES.get(task, ("", ""))
    most = max((row[key] for row in rows if isinstance(row.get(key), int)), default=0)
    known = metric.fraction and most > 0
    chance = f"{float(f'{100 / most:.2g}'):g}%" if known else ""
    return {"choices": f"{most:,} {what}" if known else "", "chance": chance, "few": known and most < FEW}


def _chart(
    reports: Sequence[Report], title: str, metric: Metric, students: Mapping[str, Sequence[Row]], teacher: Row | None
) -> Any:
    """Bars of all models by language, best first, and the teacher's English as a line."""
    values: dict[str, dict[str, float]] = {}
    ranges: dict[str, dict[str, tuple[float, float]]] = {}
    trained: set[str] = set()
    for name, rows in students.items():
        for row in rows:
            value = scores.value_of(row, metric)
            if value is not None:
                values.setdefault(row["language"], {})[name] = value
                ends = scores.interval_of(reports, name, [row], metric)
                ranges.setdefault(row["language"], {}).update({name: ends} if ends else {})
            trained |= {row["language"]} if scores.is_trained(row) else set()
    order = sorted(values, key=lambda language: -sum(values[language].values()) / len(values[language]))
    groups = [
        charts.Group(
            named_language(language) + ("" if language in trained else f", {scores.NEVER}"),
            values[language],
            faint=language not in trained,
            ranges=ranges[language],
        )
        for language in order
    ]
    mark = scores.value_of(teacher, metric) if teacher else None
    named = ("teacher's English", mark) if mark is not None else None
    return charts.bars("headline-chart", f"{title}, by language", list(students), groups, named)
