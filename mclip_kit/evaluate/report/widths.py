"""Tables of a report about embeddings that are cut: R@1 by width, of `mclip-kit eval --dims`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mclip_kit.data.languages import TEACHER_LANGUAGE, named_language
from mclip_kit.evaluate.report import scores
from mclip_kit.evaluate.report.results import Report
from mclip_kit.evaluate.retrieval import RECALLS, STUDENT, TEACHER

Rows = Sequence[Mapping[str, Any]]
GROUPS = {
    "teacher": lambda row: row["tower"] == TEACHER,
    named_language(TEACHER_LANGUAGE): lambda row: row["tower"] == STUDENT and row["language"] == TEACHER_LANGUAGE,
    "mean, trained": lambda row: row["tower"] == STUDENT and scores.is_trained(row),
    "mean, never trained": lambda row: row["tower"] == STUDENT and not scores.is_trained(row),
}
"""Head of a column -> the rows of which it is the mean."""


def width_tables(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """A table for each model and evaluation: heads, and a row for each width."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for report in reports:
        for row in report.results["widths"]:
            where = f"{row.get('split', '')} of {row.get('dataset', '')}"
            found.setdefault((scores.name_of(reports, report, row), where), []).append(row)
    return [{"model": model, "where": where, **_table(rows)} for (model, where), rows in found.items()]


def _table(rows: Rows) -> dict[str, Any]:
    groups = {label: [row for row in rows if belongs(row)] for label, belongs in GROUPS.items()}
    groups = {label: own for label, own in groups.items() if own}
    heads = [{"label": label, "title": "", "number": True} for label in ("width", *groups)]
    return {
        "heads": heads,
        "rows": [_cells(width, groups) for width in sorted({int(row["dims"]) for row in rows})],
    }


def _cells(width: int, groups: Mapping[str, Rows]) -> list[dict[str, Any]]:
    means = [scores.mean([row for row in own if row["dims"] == width], RECALLS[0]) for own in groups.values()]
    cells = [{"text": RECALLS[0].text(mean), "value": None if mean is None else 100 * mean} for mean in means]
    return [{"text": f"{width:,}", "value": width}, *cells]
