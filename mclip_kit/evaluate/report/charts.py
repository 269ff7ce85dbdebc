"""Charts of a report, as SVG: scores by language, training curves, confusion of languages."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#be123c", "#6b7280", "#ca8a04")
GRID = "#e5e7eb"
WIDTH = 7.2  # inches; the page scales it
Series = Mapping[str, Sequence[tuple[float, float]]]
"""Name of a curve -> its points."""


def bars(scores: Mapping[str, Mapping[str, float]], label: str) -> str:
    """Groups of horizontal bars; SVG.

    Args:
        scores: series -> language -> percent; a language that a series lacks has no bar.
        label: of the axis.
    """
    languages = list(dict.fromkeys(language for own in scores.values() for language in own))
    thick = 0.8 / max(len(scores), 1)
    figure, axes = _figure(0.9 + max(len(languages), 1) * max(0.26, 0.13 * len(scores)))
    for number, (name, own) in enumerate(scores.items()):
        places = [place + thick * (number - (len(scores) - 1) / 2) for place, n in enumerate(languages) if n in own]
        values = [own[language] for language in languages if language in own]
        colour = COLOURS[number % len(COLOURS)]
        axes.barh(places, values, thick * 0.92, label=drawable_name(name), color=colour)
        if len(scores) <= 3:
            for place, value in zip(places, values, strict=True):
                axes.annotate(f"{value:.1f}", (value, place), (3, 0), textcoords="offset points", va="center", size=7)
    axes.set_yticks(range(len(languages)), map(drawable_name, languages))
    axes.set_ylim(len(languages) - 0.4, -0.6)
    axes.set_xlabel(label, size=8)
    axes.grid(axis="x", color=GRID)
    _legend(figure, list(scores))
    return _svg(figure)


def curves(panels: Mapping[str, Series], stages: Sequence[tuple[str, float]] = ()) -> str:
    """Panels from top to bottom, each with its curves over the steps of all stages; SVG.

    Args:
        panels: label of the axis -> curves.
        stages: name and first step of each stage, drawn as a line.
    """
    figure, places = _figure(0.6 + 2.1 * len(panels), len(panels))
    rows = np.atleast_1d(np.asarray(places))
    for axes, (label, series) in zip(rows, panels.items(), strict=True):
        for at, (name, points) in enumerate(series.items()):
            look: dict[str, Any] = {"color": COLOURS[at % len(COLOURS)], "marker": "o" if len(points) < 40 else None}
            axes.plot(*zip(*points, strict=True), label=drawable_name(name), ms=3, lw=1.3, **look)
        for name, start in stages:
            axes.axvline(start, color=GRID, lw=1.2, zorder=0)
            if axes is rows[0]:
                axes.text(start, 1.02, drawable_name(name), transform=axes.get_xaxis_transform(), size=7)
        axes.set_ylabel(label, size=8)
        axes.grid(axis="y", color=GRID)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=7)
    axes.set_xlabel("step", size=8)
    return _svg(figure)


def matrix(names: Sequence[str], shares_LL: np.ndarray, rows: str, columns: str) -> str:
    """Shares (L, L) in percent as a shaded table; SVG.

    Args:
        rows, columns: labels of the axes.
    """
    figure, axes = _figure(1.2 + 0.36 * len(names))
    axes.imshow(shares_LL, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    labels = [drawable_name(name) for name in names]
    axes.set_xticks(range(len(names)), labels)
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylabel(rows, size=8)
    axes.set_xlabel(columns, size=8)
    for (row, column), share in np.ndenumerate(shares_LL):
        colour = "white" if share > 0.55 else "#111827"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", size=7, color=colour)
    return _svg(figure)


def drawable_name(name: str) -> str:
    """A name as matplotlib draws it: no mathematics between `$`, no control characters.

    Matplotlib leaves names that begin with an underscore out of legends; a zero-width space in front prevents that.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return ("\u200b" if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _figure(height: float, panels: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    places = figure.subplots(panels, sharex=True)
    for axes in np.atleast_1d(np.asarray(places)):
        _without_frame(axes)
    return figure, places


def _without_frame(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    if len(names) > 1:
        columns = 1 if max(map(len, names)) > 48 else 2
        figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=columns)


def _svg(figure: Figure) -> str:
    written = io.StringIO()
    with rc_context({"svg.hashsalt": "mclip_kit"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the name of a run may be in any script
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
