"""Curves of training in a report: loss, score and learning rate over the steps of all stages."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mclip_kit.evaluate.report import charts
from mclip_kit.evaluate.report.results import Report

STEP = ("stage_index", "step")  # of metrics.jsonl: the position of a row
CURVES = {"loss": "Loss", "score": "Validation: the metric that selects the best weights", "lr": "Learning rate"}
"""Values of metrics.jsonl -> titles of their charts."""
FAR = 20  # times the least loss, from which on losses are drawn on a logarithmic scale

Lines = dict[str, list[list[tuple[float, float]]]]
"""Name of a run -> a curve for each of its stages."""


def training_curves(reports: Sequence[Report]) -> dict[str, Any] | None:
    """The charts, the names of the runs, and the stages of the first of them; None if no run has a log."""
    found: dict[str, Lines] = {}
    stages: list[tuple[str, int]] = []
    steps = 0
    for report in reports:
        for number, stage, start, row in _rows(report.log):
            steps = max(steps, start + row["step"])
            if report is reports[0] and number == len(stages):
                stages.append((stage, start))
            for name in CURVES:
                if isinstance(row.get(name), int | float) and math.isfinite(row[name]):
                    lines = found.setdefault(name, {}).setdefault(report.name, [])
                    lines += [[] for _ in range(number + 1 - len(lines))]
                    lines[number].append((start + row["step"], float(row[name])))
    if not found:
        return None
    starts = [start for _, start in stages]
    drawn = [_chart(name, title, found[name], steps, starts) for name, title in CURVES.items() if name in found]
    series = [report.name for report in reports if any(report.name in lines for lines in found.values())]
    return {"charts": drawn, "series": series, "stages": [name for name, _ in stages]}


def _chart(name: str, title: str, lines: Lines, steps: int, stages: Sequence[int]) -> dict[str, Any]:
    """The losses of different stages differ by orders of magnitude: these are drawn on a logarithmic scale."""
    full = _full(lines)
    values = [y for own in full.values() for points in own for _, y in points]
    logarithmic = name == "loss" and min(values) > 0 and max(values) > FAR * min(values)
    title += ", on a logarithmic scale" * logarithmic
    return {
        "title": title,
        "svg": charts.curves(f"curve-{name}", f"{title}, by step", full, steps, stages, logarithmic),
    }


def _full(lines: Lines) -> Lines:
    """Without curves that have no point."""
    return {name: [points for points in own if points] for name, own in lines.items()}


def _rows(log: Sequence[Any]) -> Iterator[tuple[int, str, int, dict[str, Any]]]:
    """The stage's number, name and first step over all stages, and the row, of each sound row of a log."""
    start, last, index, number = 0, 0, None, -1
    for row in log:
        if isinstance(row, dict) and all(isinstance(row.get(key), int) for key in STEP):
            if row["stage_index"] != index:
                start, last, index, number = start + last, 0, row["stage_index"], number + 1
            last = row["step"]
            yield number, str(row.get("stage", "")), start, row
