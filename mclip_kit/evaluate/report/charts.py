"""Charts of a report, as inline SVG: bars by language, intervals of differences, curves of training.

Places from left to right are percents and all other lengths are CSS pixels, so a chart fills the width that it has, on
a phone too, and its letters keep their size. Colours are classes of page.css, which has them for light, dark and paper.
A chart is one picture to a screen reader: its title, and its figures as a description.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from mclip_kit.errors import one_line
from mclip_kit.evaluate.report.scale import ceiling, powers, ticks

LABEL, BAR, GAP, SPACE = 20, 17, 3, 8  # heights: a line of text, a bar, between bars, between groups
HEAD, PANEL = 22, 150  # heights of a panel of curves: the numbers of stages, the curves
COLOURS = 8  # classes s0 ... s7 of page.css
INSIDE, ROOM = 0.85, 0.2
"""Lengths, as shares of the width, above which the figure of a bar is inside it: always, and where the mark follows."""
Curve = Sequence[tuple[float, float]]
"""Points (step, value)."""
Ends = tuple[float, float]
"""Low and high."""


@dataclass(frozen=True)
class Group:
    """The bars of one language.

    Attributes:
        label: its name.
        values: series -> what is drawn; a series that the language lacks has no bar.
        faint: whether the bars are drawn hollow.
        ranges: series -> the ends of the value's interval, where it is known.
    """

    label: str
    values: Mapping[str, float]
    faint: bool = False
    ranges: Mapping[str, Ends] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """A difference and its interval, low to high."""

    label: str
    difference: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The difference and the interval in figures."""
        return f"{self.difference:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"

    @property
    def outcome(self) -> str:
        """`better` or `worse` if the interval is on one side of zero, else `open`."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "open"


def bars(
    key: str, title: str, series: Sequence[str], groups: Sequence[Group], mark: tuple[str, float] | None = None
) -> Markup:
    """Horizontal bars from zero: a label, below it a bar for each series, and a line across all for `mark`.

    Args:
        key: of the chart on its page, as an id begins.
        series: names, in the order of the colours.
        mark: what the bars are compared with, and its value.

    >>> "28.1" in bars("c", "accuracy, percent", ["student"], [Group("German (de)", {"student": 28.1})])
    True
    """
    known = [end for group in groups for name in group.values for end in _ends(group, name)]
    top = ceiling(max([*known, mark[1] if mark else 0.0], default=0.0))
    drawn, texts, y = [], [], LABEL if mark else 0
    for group in groups:
        texts.append(_text(group.label, 0, y + 15, "label"))
        own = [_bar(*bar) for bar in _places(group, series, top, mark, y + LABEL)]
        drawn += [part for parts, _ in own for part in parts]
        texts += [text for _, text in own]
        y += LABEL + len(own) * (BAR + GAP) + SPACE
    drawn += [*(_mark(*mark, top, y) if mark else ()), *texts, *_axis(top, y)]  # letters over lines over bars
    several = len(series) > 1
    figures = [_figures(group, several) for group in groups] + ([f"{mark[0]}: {mark[1]:.1f}"] if mark else [])
    return _svg(key, title, "; ".join(figures), y + LABEL, drawn)


def _ends(group: Group, name: str) -> Ends:
    """The ends of a value's interval; twice the value where no interval is known."""
    return group.ranges.get(name, (group.values[name], group.values[name]))


def _places(
    group: Group, series: Sequence[str], top: float, mark: tuple[str, float] | None, y: int
) -> Iterator[tuple[float, Ends, float, int, str, tuple[float, bool]]]:
    """What `_bar` takes, of each bar of a group from y on."""
    known = [(number, name) for number, name in enumerate(series) if name in group.values]
    for place, (number, name) in enumerate(known):
        value, ends = group.values[name], _ends(group, name)
        colour = f"s{number % COLOURS}{' faint' * group.faint}"
        yield value, ends, top, y + place * (BAR + GAP), colour, _figure_place(value, ends, top, mark)


def _figure_place(value: float, ends: Ends, top: float, mark: tuple[str, float] | None) -> tuple[float, bool]:
    """Where the figure of a bar begins or ends, and whether it ends there, inside the bar.

    It is beside the bar and its interval, where there is room; before both inside the bar; or else on the interval.
    """
    low, high = ends
    if high > top * INSIDE or (mark is not None and low > top * ROOM and high <= mark[1]):
        return (low, True) if low > top * ROOM else (value, value > top * INSIDE)
    return high, False


def _bar(
    value: float, ends: Ends, top: float, y: int, colour: str, figure: tuple[float, bool]
) -> tuple[list[Markup], Markup]:
    """A bar with its interval as a thin line, and its figure."""
    low, high, width, at = (100 * max(number, 0.0) / top for number in (*ends, value, figure[0]))
    inside = figure[1]
    place = {"dx": -6, "text_anchor": "end"} if inside else {"dx": 6}
    drawn = [_tag("rect", x=0, y=y, width=f"{width:.3f}%", height=BAR, rx=2, class_=f"bar {colour}")]
    if high > low:
        middle = y + BAR / 2
        drawn.append(_tag("line", x1=f"{low:.3f}%", x2=f"{high:.3f}%", y1=middle, y2=middle, class_="range"))
    kind = f"figure{' in' * (inside and 'faint' not in colour)}"
    return drawn, _text(f"{value:.1f}", at, y + BAR - 4, kind, **place)


def _mark(name: str, value: float, top: float, height: int) -> list[Markup]:
    """A dashed line from top to bottom, with its name and value above it."""
    x = 100 * value / top
    anchor = "start" if x < 30 else "end" if x > 70 else "middle"
    line = _tag("line", x1=f"{x:.3f}%", x2=f"{x:.3f}%", y1=LABEL - 2, y2=height, class_="mark")
    return [line, _text(f"{name}: {value:.1f}", x, 13, "marked", text_anchor=anchor)]


def _axis(top: float, y: int) -> Iterable[Markup]:
    yield _tag("line", x1="0", x2="100%", y1=y, y2=y, class_="axis")
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        yield _text(f"{top * share:g}", 100 * share, y + 14, "tick", text_anchor=anchor)


def _figures(group: Group, several: bool) -> str:
    named = []
    for name, value in group.values.items():
        low, high = _ends(group, name)
        between = f" (95% interval {low:.1f} to {high:.1f})" if high > low else ""
        named.append(f"{name} " * several + f"{value:.1f}{between}")
    return f"{group.label}: {', '.join(named)}"


def intervals(key: str, title: str, rows: Sequence[Interval], span: tuple[float, float]) -> Markup:
    """Differences with their intervals around a line at zero.

    Args:
        span: the values at the left and the right edge, so that several charts can have the same scale.

    >>> "better" in intervals("c", "difference", [Interval("German (de)", 2.0, 0.5, 3.1)], (-4, 4))
    True
    """
    low, high = span

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    drawn, y = [], 0
    for row in rows:
        drawn += [_text(row.label, 0, y + 15, "label"), _text(row.text, 100, y + 15, "figure", text_anchor="end")]
        middle = y + LABEL + BAR // 2
        ends = {"x1": f"{place(row.low):.3f}%", "x2": f"{place(row.high):.3f}%"}
        drawn.append(_tag("line", **ends, y1=middle, y2=middle, class_=f"interval {row.outcome}"))
        drawn.append(_tag("circle", cx=f"{place(row.difference):.3f}%", cy=middle, r=5, class_=f"dot {row.outcome}"))
        y += LABEL + BAR + SPACE
    zero = place(0)
    drawn.insert(0, _tag("line", x1=f"{zero:.3f}%", x2=f"{zero:.3f}%", y1=0, y2=y, class_="mark"))
    drawn.append(_tag("line", x1="0", x2="100%", y1=y, y2=y, class_="axis"))
    for value, anchor in ((low, "start"), (0.0, "middle"), (high, "end")):
        drawn.append(_text(f"{value:+g}" if value else "0", place(value), y + 14, "tick", text_anchor=anchor))
    described = "; ".join(f"{row.label}: {row.text}, {row.outcome}" for row in rows)
    return _svg(key, title, described, y + LABEL, drawn)


def span(rows: Iterable[Interval]) -> tuple[float, float]:
    """Round values that have zero and all intervals between them, as far from zero on both sides."""
    most = ceiling(max((abs(value) for row in rows for value in (row.low, row.high)), default=1.0))
    return -most, most


def curves(
    key: str,
    title: str,
    series: Mapping[str, Sequence[Curve]],
    steps: float,
    stages: Sequence[float] = (),
    logarithmic: bool = False,
) -> Markup:
    """One panel of curves over the steps of all stages.

    Args:
        series: name -> a curve for each stage.
        steps: at the right edge.
        stages: the first step of each stage; a line with the stage's number is drawn there.
        logarithmic: whether the values, which are positive, are drawn by their logarithms.
    """
    scale = math.log10 if logarithmic else float
    values = [scale(y) for lines in series.values() for points in lines for _, y in points]
    marks = powers(min(values), max(values)) if logarithmic else ticks(min(values), max(values))
    low, high = marks[0], marks[-1]
    steps = steps or 1.0
    drawn = [*_grid(marks, logarithmic), *_stages(stages, steps)]
    for number, lines in enumerate(series.values()):
        for points in lines:
            places = [(x / steps, (high - scale(y)) / (high - low)) for x, y in points]
            drawn += _curve(places, f"s{number % COLOURS}")
    described = "; ".join(_ends_of(name, lines) for name, lines in series.items())
    return _svg(key, title, described, HEAD + PANEL + LABEL, drawn, "chart curves")


def _grid(marks: Sequence[float], logarithmic: bool) -> Iterator[Markup]:
    """A line at each mark, and its value to the left of it."""
    for value in marks:
        y = HEAD + PANEL * (marks[-1] - value) / (marks[-1] - marks[0])
        yield _tag("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
        shown = f"{10**value:g}" if logarithmic else f"{value:g}"
        yield _text(shown, 0, y + 4, "tick", dx=-6, text_anchor="end")


def _stages(stages: Sequence[float], steps: float) -> Iterator[Markup]:
    """A line where each stage begins, with its number, and numbers of steps below the panel."""
    for number, start in enumerate(stages, 1):
        x = 100 * start / steps
        yield _tag("line", x1=f"{x:.3f}%", x2=f"{x:.3f}%", y1=0, y2=HEAD + PANEL, class_="stage")
        yield _text(f"stage {number}" if number == 1 else str(number), x, 11, "tick", dx=4)
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        yield _text(f"{steps * share:,.0f}", 100 * share, HEAD + PANEL + 15, "tick", text_anchor=anchor)


def _curve(places: Sequence[tuple[float, float]], colour: str) -> list[Markup]:
    """A line through places in the unit square, and a dot at each if they are few."""
    points = " ".join(f"{1000 * x:.2f},{1000 * y:.2f}" for x, y in places)
    line = _tag("polyline", points=points, class_=f"curve {colour}", vector_effect="non-scaling-stroke")
    box = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "overflow": "visible"}
    drawn = [_tag("svg", line, x=0, y=HEAD, width="100%", height=PANEL, **box)]
    if len(places) < 40:
        drawn += [
            _tag("circle", cx=f"{100 * x:.3f}%", cy=f"{HEAD + PANEL * y:.1f}", r=2.5, class_=f"dot {colour}")
            for x, y in places
        ]
    return drawn


def _ends_of(name: str, lines: Sequence[Curve]) -> str:
    points = [point for line in lines for point in line]
    return f"{name}: {points[0][1]:.4g} at step {points[0][0]:,.0f}, {points[-1][1]:.4g} at step {points[-1][0]:,.0f}"


def _svg(
    key: str, title: str, description: str, height: float, inside: Iterable[Markup], kind: str = "chart"
) -> Markup:
    names = [_tag("title", one_line(title), id=f"{key}-title"), _tag("desc", one_line(description), id=f"{key}-desc")]
    labels = {"role": "img", "aria_labelledby": f"{key}-title {key}-desc"}
    return _tag("svg", *names, *inside, class_=kind, id=key, width="100%", height=f"{height:g}", **labels)


def _text(words: str, x: float, y: float, kind: str, **more: object) -> Markup:
    """A line of text; `x` is a percentage."""
    return _tag("text", one_line(words), x=f"{x:.3f}%", y=f"{y:g}", class_=kind, **more)


def _tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element; attributes have underscores for hyphens, and `class_` for class."""
    pairs = [
        Markup(' {}="{}"').format(attribute.rstrip("_").replace("_", "-"), value)
        for attribute, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup().join(pairs), Markup().join(inside))
