"""Comparisons of a report: differences between models and baselines, with their bootstrap intervals."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mclip_kit.data.languages import named_language
from mclip_kit.evaluate.base import metrics_of
from mclip_kit.evaluate.report import charts, scores
from mclip_kit.evaluate.report.charts import Interval
from mclip_kit.evaluate.report.results import Report

MEAN = "mean"  # the language of a difference of means over languages


def comparisons(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """For each model and baseline: a sentence, a chart of the first metric, and a table of all.

    All charts have the same scale.
    """
    words = _metric_words(reports)
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for report in reports:
        for item in report.results["comparisons"]:
            where = f"{item.get('split', '')} of {item.get('dataset', '')}"
            groups.setdefault((scores.name_of(reports, report, item), str(item["baseline"]), where), []).append(item)
    drawn = {
        group: [_interval(item) for item in items if item["metric"] == items[0]["metric"] and _is_finite(item)]
        for group, items in groups.items()
    }
    scale = charts.span(row for rows in drawn.values() for row in rows)
    return [
        {
            "model": model,
            "baseline": baseline,
            "where": where,
            "metric": words.get(items[0]["metric"], items[0]["metric"]),
            "sentence": _sentence(drawn[model, baseline, where]),
            "svg": charts.intervals(
                f"compared-{number}", f"{model} minus {baseline}, {where}", drawn[model, baseline, where], scale
            ),
            "rows": [_cells(item, words) for item in items],
        }
        for number, ((model, baseline, where), items) in enumerate(groups.items(), 1)
    ]


def _metric_words(reports: Sequence[Report]) -> dict[str, str]:
    """Metric of results.json -> what it is, in words."""
    tasks = dict.fromkeys(row["task"] for _, row in scores.rows_of(reports))
    return {name: metric.description for task in tasks for name, metric in metrics_of(task).items()}


def _language(code: str) -> str:
    return "mean of languages" if code == MEAN else named_language(code)


def _is_finite(item: Mapping[str, Any]) -> bool:
    return all(math.isfinite(item[key]) for key in ("difference", "low", "high"))


def _interval(item: Mapping[str, Any]) -> Interval:
    difference, low, high = (100 * item[key] for key in ("difference", "low", "high"))
    return Interval(_language(item["language"]), difference, low, high)


def _sentence(rows: Sequence[Interval]) -> str:
    """How many languages are better, worse, and neither."""
    own = [row for row in rows if row.label != _language(MEAN)]
    counts = Counter(row.outcome for row in own)
    return (
        f"Better in {counts['better']} of {len(own)} language{'s' * (len(own) > 1)}, worse in {counts['worse']}; "
        f"in {counts['open']} the interval includes zero."
    )


def _cells(item: Mapping[str, Any], words: Mapping[str, str]) -> list[dict[str, Any]]:
    interval = _interval(item)
    return [
        {"text": interval.label},
        {"text": words.get(item["metric"], item["metric"])},
        {"text": f"{interval.difference:+.1f}", "value": interval.difference},
        {"text": f"{interval.low:+.1f}", "value": interval.low},
        {"text": f"{interval.high:+.1f}", "value": interval.high},
    ]
