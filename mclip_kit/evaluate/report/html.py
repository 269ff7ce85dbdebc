"""report.html: one self-contained page about an evaluation, or about several runs side by side.

It is made from files of runs: results.json, metrics.jsonl and recipe.yaml; an evaluation adds pictures.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from mclip_kit.data.languages import named_language
from mclip_kit.evaluate.base import users_of
from mclip_kit.evaluate.gallery import Gallery, QueryResult
from mclip_kit.evaluate.report import scores
from mclip_kit.evaluate.report.compared import comparisons
from mclip_kit.evaluate.report.headline import headline
from mclip_kit.evaluate.report.reproduce import reproduction
from mclip_kit.evaluate.report.results import Report, leak_line
from mclip_kit.evaluate.report.results import evaluated as evaluated
from mclip_kit.evaluate.report.results import read as read
from mclip_kit.evaluate.report.results import read_results as read_results
from mclip_kit.evaluate.report.training_curves import training_curves
from mclip_kit.evaluate.report.widths import width_tables
from mclip_kit.files import printable, write_text

SIDE = 160  # pixels of a picture on the page; screens of phones show it in less than half of that


def write(reports: Sequence[Report], path: Path, gallery: Gallery | None = None) -> None:
    """Write the page, whole or not at all; bytes of names that are not UTF-8 are written as escapes."""
    html = render(reports, gallery or Gallery())
    write_text(path, printable(html))


def render(reports: Sequence[Report], gallery: Gallery) -> str:
    """The page as HTML; it needs no other file."""
    first = headline(reports)
    skipped = [first["shown"]] if first and first["is_all"] else []
    return _page().render(
        title=reports[0].name if len(reports) == 1 else f"{len(reports)} runs side by side",
        style=_own("page.css"),
        script=_own("page.js"),
        reports=reports,
        with_protocol=users_of("protocol"),
        overlaps=_overlaps(reports),
        leaks=_leaks(reports),
        headline=first,
        bars=scores.drawn_charts(reports, skipped),
        tables=scores.tables(reports),
        comparisons=comparisons(reports),
        widths=width_tables(reports),
        curves=training_curves(reports),
        confusions=[_confused(pair, gallery) for pair in _entries(reports, "confusions")],
        matrices=[_matrix(entry) for entry in _entries(reports, "language_confusion")],
        queries={head: [_query(row) for row in rows] for head, rows in gallery.queries.items() if rows},
        gallery=gallery,
        reproduction=reproduction(reports),
    )


@cache
def _page() -> Template:
    """page.html, compiled once a process."""
    environment = Environment(
        loader=PackageLoader("mclip_kit.evaluate", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _own(name: str) -> Markup:
    """A file of this folder, to be put into the page."""
    return Markup((files("mclip_kit.evaluate.report") / name).read_text(encoding="utf-8"))


def _leaks(reports: Sequence[Report]) -> dict[str, list[str]]:
    """A sentence for each leak, and the models whose training data was compared with the test sets, or was not.

    What earlier versions wrote does not say whether it was.
    """
    found = {leak_line(leak): None for report in reports for leak in report.results["leakage"]}
    lists: dict[str, dict[str, None]] = {"checked": {}, "unchecked": {}}
    for report in reports:
        for about in report.results["evaluations"]:
            models = {str(row["model"]) for row in report.results["results"]}
            checked = about.get("leakage_checked")
            for model in sorted(models if checked is not None else ()):
                lists["checked" if model in checked else "unchecked"][model] = None
    return {"found": list(found), **{name: list(models) for name, models in lists.items()}}


def _overlaps(reports: Sequence[Report]) -> list[str]:
    """A sentence for each overlap of the test data with others' training data that its declaration names."""
    abouts = [about for report in reports for about in report.results["evaluations"]]
    return list(dict.fromkeys(f"{about['data']}: {line}" for about in abouts for line in about.get("overlaps", [])))


def _entries(reports: Sequence[Report], name: str) -> list[dict[str, Any]]:
    """The entries of a list of results.json, with the names of their models."""
    several = len(reports) > 1
    return [
        entry | {"model": scores.name_of(reports, report, entry) if several else entry["model"]}
        for report in reports
        for entry in report.results[name]
    ]


def _confused(pair: Mapping[str, Any], gallery: Gallery) -> dict[str, Any]:
    """A pair of confused pictures; without sources of pictures if the gallery does not have them."""
    known = [gallery.pictures.get((pair["folder"], name)) for name in (pair["picture"], pair["found"])]
    sources = ["" if pixels is None else _picture(pixels) for pixels in known]
    languages = [named_language(language) for language in pair["languages"]]
    return dict(pair) | {"sources": sources, "languages": languages, "name": named_language(pair["language"])}


def _matrix(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Percents of results.json's `language_confusion` as texts, with how dark their cells are."""
    names = [named_language(language) for language in entry["languages"]]
    rows = [[{"text": f"{100 * share:.0f}", "share": round(100 * share)} for share in row] for row in entry["shares"]]
    return {"model": entry["model"], "codes": entry["languages"], "rows": list(zip(names, rows, strict=True))}


def _query(row: QueryResult) -> dict[str, Any]:
    pictures = [{"src": _picture(p), "right": right} for p, right in zip(row.pictures, row.right, strict=True)]
    return {"language": row.language, "name": named_language(row.language), "text": row.query, "pictures": pictures}


def _picture(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    kind = "png" if max(picture.size) < SIDE else "jpeg"
    picture.save(written, kind, quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
