"""The tables of docs/performance.md that `make bench` writes from benchmarks/results/*.json, between marks."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench_table import BENCHES
from tables import head, row

from mclip_kit.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PART = re.compile(r"(<!-- bench: ([\w -]+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)
MACHINES = "machines"  # the part with the computers
UNKNOWN = ["not measured yet", "", "", "", ""]
Results = dict[str, dict[str, Any]]


def read(folder: Path) -> Results:
    """Script -> what was measured of it, of those that were."""
    files = {bench.script: folder / f"{bench.script}.json" for bench in BENCHES}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def machines(results: Results) -> dict[str, str]:
    """A computer, as a text -> its letter, in the order of the table."""
    found: dict[str, str] = {}
    for result in results.values():
        found.setdefault(_computer(result), chr(ord("A") + len(found)))
    return found


def _computer(result: dict[str, Any]) -> str:
    facts = result["machine"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB; {facts['os']}, Python {facts['python']}"
        + (f"; {facts['gpu']}" if facts.get("gpu") else "")
    )


def about_machines(results: Results) -> list[str]:
    """A line for each computer, with the versions of packages."""
    lines = []
    for computer, letter in machines(results).items():
        own: dict[str, set[str]] = defaultdict(set)
        for result in (result for result in results.values() if _computer(result) == computer):
            for package, version in result["versions"].items():
                own[package].add(version)
        packages = ", ".join(f"{package} {' or '.join(sorted(found))}" for package, found in own.items())
        lines.append(f"- {letter}: {computer}; {packages}.")
    return lines or ["Nothing has been measured by `make bench` yet."]


def table(section: str, results: Results) -> list[str]:
    """The figures of a section."""
    letters = machines(results)
    lines = head("what", "ratio, rounds", "before", "goal", "met", "machine, day", "command")
    for bench in (bench for bench in BENCHES if bench.section == section):
        result = results.get(bench.script)
        for name, what in bench.figures.items():
            cells = _cells(result, name, letters) if result else UNKNOWN
            lines.append(row(what, *cells, f"`{(result or {}).get('command', bench.command)}`"))
    return lines


def _cells(result: dict[str, Any], name: str, letters: dict[str, str]) -> list[str]:
    figure = result["figures"].get(name)
    if figure is None:
        return UNKNOWN
    side = "at least" if figure["better"] == "higher" else "at most"
    day = f"{letters[_computer(result)]}, {result['date']}"
    before = _before(result["earlier"], name, figure)
    return [
        f"{spread(figure)}, {len(figure['rounds'])}",
        before,
        f"{side} {figure['goal']:g}",
        "yes" if figure["met"] else "**no**",
        day,
    ]


def latest(earlier: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The latest of the results of before that has a figure."""
    return next((old for old in reversed(earlier) if name in old["figures"]), None)


def _before(earlier: list[dict[str, Any]], name: str, now: dict[str, Any]) -> str:
    old = latest(earlier, name)
    if old is None:
        return ""
    before = old["figures"][name]
    return f"{spread(before)}, {old['date']}" + ("" if alike(before, now) else ", **outside**")


def spread(figure: dict[str, Any]) -> str:
    """The median of a figure, the least and the largest."""
    return f"{figure['median']:.2f} ({figure['min']:.2f} to {figure['max']:.2f})"


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a median of two measurements is within the spread of the other."""
    return one["min"] <= other["median"] <= one["max"] or other["min"] <= one["median"] <= other["max"]


def filled(page: str, results: Results) -> str:
    """A page with the tables between its marks."""
    wanted = {MACHINES, *(bench.section for bench in BENCHES)}
    there = [section for _, section, _ in PART.findall(page)]
    if sorted(there) != sorted(wanted):
        raise SystemExit(f"{PAGE}: marks of {sorted(there)}, and bench_table.py has {sorted(wanted)}")

    def part(match: re.Match[str]) -> str:
        lines = about_machines(results) if match[2] == MACHINES else table(match[2], results)
        return f"{match[1]}\n" + "\n".join(lines) + f"\n\n{match[3]}"

    return PART.sub(part, page)


def write(folder: Path) -> None:
    """Write the page."""
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page, read(folder))
    if new != page:
        write_text(PAGE, new)
