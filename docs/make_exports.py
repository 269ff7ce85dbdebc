"""Write docs/exports.md: what every format does with every kind of student, with the largest differences.

    python docs/make_exports.py [OUT]

The table is the one that tests/interop/test_formats.py checks. Formats whose packages are not installed are left out,
and named.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEAD = """# Exports

Written by `python docs/make_exports.py`; tests/interop/test_formats.py checks the same tables.

`mclip-kit export FORMAT MODEL --out DIR` writes a folder, moves it, and has FORMAT's own library read it in another
process, which cannot import mclip_kit and has no network. Its embeddings are compared with the model's. The folder is
kept only if they are the same up to 1e-5 (float32; all numbers are between -1 and 1); its README.md has the figures.
`mclip-kit export --list MODEL` says which formats a model fits.

A number below is the largest difference in texts and plain pictures between the library and the model: tiny models
whose weights, biases, norms and running statistics are all random. A letter is a refusal; its reason stands below."""


def table(outcomes: Mapping[Any, Any]) -> list[str]:
    """Heads by pools and clip projectors."""
    from tests.interop.matrix import CLIP_PROJECTORS, HEADS, POOLS, Cell

    columns = [(pool, projector) for projector in CLIP_PROJECTORS for pool in POOLS]
    reasons: dict[str, str] = {}
    lines = ["| head | " + " | ".join(f"{pool}, {projector}" for pool, projector in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for head in HEADS:
        cells = []
        for pool, projector in columns:
            outcome = outcomes[Cell(head, pool, projector)]
            if outcome.reason is None:
                cells.append(f"{outcome.largest:.0e}")
            else:
                cells.append(reasons.setdefault(outcome.reason, chr(ord("a") + len(reasons))))
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"- {letter}: {reason}" for reason, letter in reasons.items())]


def section(name: str, outcomes: Mapping[Any, Any], models: Mapping[Any, Any]) -> list[str]:
    """What is written of a format."""
    from mclip_kit.interop.export import find

    form = find(name)
    lines = [f"## {name}", "", f"Read by {form.library}. Columns: pool, clip_projector.", "", *table(outcomes), ""]
    fitting = [cell for cell, outcome in outcomes.items() if outcome.reason is None]
    if not fitting:
        return lines
    model, options = models[fitting[0]], form.options
    allowed = form.allowed(model, options)
    lines += ["| samples | largest difference | |", "| --- | --- | --- |"]
    for group in outcomes[fitting[0]].differences:
        largest = max(outcomes[cell].differences[group] for cell in fitting)
        lines.append(f"| {group} | {largest:.0e} | {'checked' if group in allowed else 'differs: see below'} |")
    lines += ["", *(f"- {note}" for note in form.notes(model, options)), ""]
    install = f"Without mclip-kit: `python -m pip install {form.install or form.library}`"
    return [*lines, install, "", "```python", form.lines(model, options).format(folder="DIR"), "```", ""]


def main(out: Path = ROOT / "docs" / "exports.md") -> None:
    """Write the page."""
    sys.path.insert(0, str(ROOT))
    from mclip_kit.interop.export import FORMATS, find
    from tests import tiny
    from tests.interop.matrix import students, tried

    lines = [HEAD, ""]
    with tempfile.TemporaryDirectory() as temporary:
        models = students(tiny.corpus(Path(temporary) / "data"))
        for name in FORMATS:
            if find(name).missing:
                lines += [f"## {name}", "", "Its packages were not installed when this page was written.", ""]
            else:
                lines += section(name, tried(name, models, Path(temporary) / name), models)
    out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
