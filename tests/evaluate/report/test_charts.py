"""Charts: places and figures are those of the data, and a screen reader gets all of them."""

import doctest
import re
from itertools import pairwise
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from mclip_kit import progress
from mclip_kit.cli import output
from mclip_kit.data import languages
from mclip_kit.evaluate.report import charts, scale
from mclip_kit.evaluate.report.charts import Group, Interval
from mclip_kit.train.callbacks import stage_summary


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(chart: ElementTree.Element, kind: str) -> list[str]:
    found = [element for element in chart.iter("text") if kind in element.attrib["class"].split()]
    return [element.text or "" for element in found]


def percent(text: str) -> float:
    return float(text.removesuffix("%"))


def test_bars_are_as_long_as_their_values_and_carry_their_figures() -> None:
    groups = [Group("German (de)", {"a": 40.0, "b": 20.04}), Group("French (fr)", {"b": 0.0}, faint=True)]
    chart = parsed(charts.bars("c", "R@1", ["a", "b"], groups, ("teacher's English", 45.0)))
    bars = [element for element in chart.iter("rect")]
    assert [percent(bar.attrib["width"]) for bar in bars] == pytest.approx([80, 40.08, 0])  # of the scale, 50
    assert [bar.attrib["class"] for bar in bars] == ["bar s0", "bar s1", "bar s1 faint"]
    assert texts(chart, "figure") == ["40.0", "20.0", "0.0"]
    assert texts(chart, "label") == ["German (de)", "French (fr)"]
    assert texts(chart, "marked") == ["teacher's English: 45.0"]
    assert texts(chart, "tick") == ["0", "25", "50"]
    (mark,) = (line for line in chart.iter("line") if line.attrib["class"] == "mark")
    assert percent(mark.attrib["x1"]) == pytest.approx(90)


def test_nothing_is_drawn_outside_or_over_another_thing() -> None:
    groups = [Group(f"language {n}", {"a": value}) for n, value in enumerate((0.1, 33.0, 86.0, 99.9))]
    chart = parsed(charts.bars("c", "R@1", ["a"], groups))
    height = float(chart.attrib["height"])
    bars = [(float(bar.attrib["y"]), float(bar.attrib["height"])) for bar in chart.iter("rect")]
    lines = [float(text.attrib["y"]) for text in chart.iter("text")]
    assert all(0 <= y <= height for y in lines)
    assert all(y + high <= after for (y, high), (after, _) in pairwise(bars))
    figures = [element for element in chart.iter("text") if "figure" in element.attrib["class"]]
    inside = [text.attrib.get("text-anchor") == "end" for text in figures]
    assert inside == [False, False, True, True]  # a figure beside a long bar would leave the page
    marked = parsed(charts.bars("c", "R@1", ["a"], groups, ("teacher's English", 40.0)))
    figures = [element for element in marked.iter("text") if "figure" in element.attrib["class"]]
    inside = [text.attrib.get("text-anchor") == "end" for text in figures]
    assert inside == [False, True, True, True]  # beside the second bar the line of the mark would cross it


@pytest.mark.parametrize(("value", "anchor"), [(6.0, None), (18.0, "end")])
def test_a_figure_without_room_beside_its_interval_is_on_it_and_not_left_of_the_page(
    value: float, anchor: str | None
) -> None:
    group = Group("German (de)", {"a": value}, ranges={"a": (0.0, 20.0)})
    (figure,) = (text for text in parsed(charts.bars("c", "R@1", ["a"], [group])).iter("text") if "dx" in text.attrib)
    assert percent(figure.attrib["x"]) == pytest.approx(5 * value)  # of the scale, 20
    assert figure.attrib.get("text-anchor") == anchor


def test_a_bar_carries_its_interval_and_the_figure_is_not_on_it() -> None:
    groups = [
        Group("German (de)", {"a": 40.0}, ranges={"a": (30.0, 50.0)}),
        Group("French (fr)", {"a": 80.0}, ranges={"a": (70.0, 90.0)}),
        Group("Czech (cs)", {"a": 20.0}),
    ]
    chart = parsed(charts.bars("c", "R@1", ["a"], groups))
    ranges = [line for line in chart.iter("line") if line.attrib["class"] == "range"]
    assert [(percent(one.attrib["x1"]), percent(one.attrib["x2"])) for one in ranges] == [(30, 50), (70, 90)]
    figures = [element for element in chart.iter("text") if "figure" in element.attrib["class"]]
    assert [(percent(one.attrib["x"]), one.attrib.get("text-anchor")) for one in figures] == [
        (50, None),
        (70, "end"),
        (20, None),
    ]
    assert chart.findtext("desc") == (
        "German (de): 40.0 (95% interval 30.0 to 50.0); French (fr): 80.0 (95% interval 70.0 to 90.0); Czech (cs): 20.0"
    )


def test_intervals_have_a_common_scale_and_say_what_they_show() -> None:
    rows = [Interval("de", 2.0, 0.5, 3.5), Interval("fr", -1.0, -2.0, -0.1), Interval("en", 0.1, -0.4, 0.6)]
    scale = charts.span(rows)
    assert scale == (-5, 5)
    chart = parsed(charts.intervals("c", "difference", rows, scale))
    ends = [(percent(line.attrib["x1"]), percent(line.attrib["x2"])) for line in chart.iter("line")][1:4]
    assert np.array(ends) == pytest.approx(np.array([(55, 85), (30, 49), (46, 56)]))
    assert [dot.attrib["class"] for dot in chart.iter("circle")] == ["dot better", "dot worse", "dot open"]
    assert texts(chart, "figure") == ["+2.0 [+0.5, +3.5]", "-1.0 [-2.0, -0.1]", "+0.1 [-0.4, +0.6]"]
    described = chart.findtext("desc") or ""
    assert described == "de: +2.0 [+0.5, +3.5], better; fr: -1.0 [-2.0, -0.1], worse; en: +0.1 [-0.4, +0.6], open"


def test_curves_go_through_their_points() -> None:
    chart = parsed(charts.curves("c", "loss", {"run": [[(0, 4.0), (10, 2.0)], [(10, 1.0), (20, 0.0)]]}, 20, [0, 10]))
    logarithmic = parsed(charts.curves("c", "loss", {"run": [[(0, 0.1), (20, 100.0)]]}, 20, [0], logarithmic=True))
    assert next(logarithmic.iter("polyline")).attrib["points"] == "0.00,1000.00 1000.00,0.00"
    found = [re.findall(r"[\d.]+", line.attrib["points"]) for line in chart.iter("polyline")]
    places = [[float(number) for number in own] for own in found]
    assert places == [[0, 0, 500, 500], [500, 750, 1000, 1000]]
    assert texts(chart, "tick")[:5] == ["0", "1", "2", "3", "4"]
    assert texts(chart, "tick")[:5] != texts(logarithmic, "tick")[:5] == ["0.1", "1", "10", "100", "stage 1"]
    assert texts(chart, "tick")[5:] == ["stage 1", "2", "0", "10", "20"]
    assert len(list(chart.iter("circle"))) == 4


@pytest.mark.parametrize("low", [-3.0, 0.0, 1e-5, 0.7])
@pytest.mark.parametrize("height", [0.0, 1e-6, 3.3, 1e4])
def test_ticks_are_few_and_hold_all_values(low: float, height: float) -> None:
    found = scale.ticks(low, low + height)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-9
    assert found[-1] >= low + height - 1e-9 * max(1, height)
    assert np.diff(found) == pytest.approx(found[1] - found[0])


def test_a_chart_is_one_picture_with_a_name_and_its_figures() -> None:
    chart = parsed(charts.bars("c", "R@1 <b>", ["a", "b"], [Group("<i>", {"a": 1.0, "b": 2.0})]))
    assert chart.attrib["role"] == "img"
    ids = chart.attrib["aria-labelledby"].split()
    named = [next(element.text for element in chart if element.attrib.get("id") == name) for name in ids]
    assert named == ["R@1 <b>", "<i>: a 1.0, b 2.0"]


@pytest.mark.parametrize("name", ["$x^$", "a\x01\n", "_日本", '"><script>', "\x1b[31mred"])
def test_any_name_is_one_line_of_text(name: str) -> None:
    chart = parsed(charts.bars("c", name, [name], [Group(name, {name: 1.0})], (name, 2.0)))
    assert all((element.text or "").isprintable() for element in chart.iter())
    assert not list(chart.iter("script"))


@pytest.mark.parametrize(
    "module", [charts, scale, languages, output, progress, stage_summary], ids=lambda it: it.__name__
)
def test_examples_run(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_no_data_is_an_empty_chart() -> None:
    assert texts(parsed(charts.bars("c", "nothing", [], [])), "tick") == ["0", "0.5", "1"]
