"""`mclip-kit eval --task retrieval`: tables of models and their baselines, retrieval.png, and a gallery."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.errors import MALFORMED, DataError
from mclip_kit.evaluate import qualitative, widths
from mclip_kit.evaluate.base import Findings, Request, ResultRows
from mclip_kit.evaluate.baselines import baseline
from mclip_kit.evaluate.bootstrap import compare, intervals
from mclip_kit.evaluate.checks import open_data
from mclip_kit.evaluate.gallery import Gallery, QueryResult
from mclip_kit.evaluate.models import computed_on, open_model
from mclip_kit.evaluate.report import tables
from mclip_kit.evaluate.retrieval import METRICS as METRICS
from mclip_kit.evaluate.retrieval import STUDENT, TEACHER, Retrieval, evaluate
from mclip_kit.evaluate.retrieval import VALIDATION as VALIDATION
from mclip_kit.evaluate.same_images import SameImages, open_older, same_images
from mclip_kit.layout import MANIFEST
from mclip_kit.storage import fetch
from mclip_kit.urls import named

PICTURE = "retrieval.png"


def run(request: Request) -> Findings:
    """Score every model and its baselines; draw what the last model finds.

    Raises:
        DataError, RecipeError: the data, a split, a language or a baseline is wrong.
    """
    device = computed_on(request)  # first: a precision may not work there
    captions, chosen = request.opened or open_data(request), (request.split, request.languages)
    credit = _credit(request.data)
    opened = partial(open_model, request)
    baselines = {name: baseline(name, captions, *chosen, request.protocol, opened) for name in request.baseline}
    older = open_older(request.same_images) if request.same_images else None
    rows: ResultRows = []
    scored: list[tables.Scored] = []
    differences: list[str] = []
    comparisons: list[dict[str, Any]] = []
    sure: list[dict[str, Any]] = []
    same: dict[Path, SameImages] = {}
    cut: ResultRows = []
    width_tables: list[str] = []
    for name in request.models:
        model, cache = opened(name)
        widths.check(request.dims, str(name), model)
        results = evaluate(model, captions, *chosen, cache=cache, protocol=request.protocol)
        about = request.about(name, model.made_from)
        scored.append((f"{name} ({model.made_from})", results, model.trained_languages))
        rows += tables.retrieval_rows(results, about, STUDENT, model.trained_languages)
        sure += [{"model": str(name)} | row for row in _intervals(results, model.trained_languages)]
        if request.dims:
            by_width = widths.by_width(model, request.dims, cache, results, captions, *chosen, request.protocol)
            cut += widths.rows(by_width, about, model.trained_languages)
            title = f"{name}, by width, {request.split}"
            width_tables.append(widths.table(by_width, model.trained_languages, model.dims, title))
        if request.same_images and older:
            pictures_of = (captions, request.split, request.data, request.workers)
            same[name] = same_images(model, request.same_images, older, *pictures_of)
        for against, score in baselines.items():
            theirs = score(model, cache, str(name))
            found = compare(results, theirs)
            rows += tables.retrieval_rows(theirs, about, against, None)
            comparisons += [{"model": str(name), "baseline": against} | asdict(item) for item in found]
            title = f"{name} against {against}, {request.split}"
            differences.append(tables.differences(title, results, theirs, found))
    if len(scored) == 1:
        request.show(tables.table(results, model.trained_languages, request.title(name, model.made_from)))
    else:
        request.show(tables.comparison(scored))
    for table in [*width_tables, *differences]:
        request.show(table)
    for name, found_same in same.items():
        request.show(f"{name}: {found_same.line}")
    picture = request.out / PICTURE
    languages = [language for language in results if language != TEACHER]
    found_split = qualitative.embedded(model, captions, request.split, languages, cache)
    about_model = {"model": str(name)}
    pairs, own = qualitative.confused_pairs(found_split)
    pictures = {(named(request.data.resolve()), picture): pixels for picture, pixels in own.items()}
    codes, shares_LL = qualitative.confusion(found_split.text_QD, captions.languages[found_split.rows_Q])
    return Findings(
        tables.distinct(rows),
        comparisons,
        sure,
        [picture],
        Gallery(_drawn(found_split, languages, picture, credit), pictures, credit, str(name)),
        [about_model | asdict(pair) for pair in pairs],
        [about_model | {"languages": codes, "shares": shares_LL.round(4).tolist()}],
        cut,
        device,
        same,
    )


def _intervals(results: dict[str, Retrieval], trained: Sequence[str] | None) -> list[dict[str, Any]]:
    """Intervals of each language, and of the means over the trained languages and over the others."""
    own = [language for language in results if language != TEACHER]
    groups = [[language] for language in results]
    for wanted in (True, False):
        mean = [language for language in own if (trained is None or language in trained) == wanted]
        groups += [mean] if len(mean) > 1 else []
    return [
        {"tower": TEACHER, **asdict(item), "languages": [TEACHER_LANGUAGE]}
        if item.languages == (TEACHER,)
        else {"tower": STUDENT, **asdict(item)}
        for item in intervals(results, groups)
    ]


def _drawn(
    found: qualitative.EmbeddedSplit, languages: list[str], path: Path, credit: str
) -> dict[str, list[QueryResult]]:
    """Draw one query a language, and choose those of the report."""
    from mclip_kit.evaluate.report import contact_sheet

    title, footer = f"What one model finds in {len(languages)} languages", f"Queries are drawn at random. {credit}"
    contact_sheet.draw(qualitative.random_queries(found, languages), path, title, footer)
    best, worst = qualitative.extremes(found)
    return {"Best queries": best, "Worst queries": worst}


def _credit(data: Path) -> str:
    """Authors and licences of a prepared corpus."""
    try:
        licences = json.loads(fetch(data / MANIFEST).read_text(encoding="utf-8"))["licences"]
        return "; ".join(f"{part['what']}: {part['by']}, {part['licence']}" for part in licences)
    except MALFORMED:
        raise DataError(f"{data / MANIFEST}: damaged; prepare it with --again") from None
