"""What comes out of a run: the facts of its model's card, and stages that ended below their start."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mclip_kit import layout
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import STUDENT, Stage
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.leakage import Leak
from mclip_kit.errors import MALFORMED
from mclip_kit.interop.facts import Facts, facts_of, licences_of
from mclip_kit.storage import fetch
from mclip_kit.train.logging import read_log


def card_facts(recipe: Recipe, leaks: Sequence[Leak], images: Facts) -> Facts:
    """What the card of a trained model says of its training; what it was tuned from is said first.

    Args:
        recipe: of the run.
        leaks: of test sets.
        images: of `interop.origin.images`. If the model that this one was tuned from had the image tower of a CLIP,
            that CLIP is named.
    """
    before = facts_of(Path(recipe.init_from)) if recipe.init_from else {}
    here = [Path(place) for place in (recipe.data.captions, *recipe.data.bitexts) if place]
    bases = before.get("bases") or recipe.sources
    first = before.get("images")
    if images and first and first["same"]:
        images = {"images": {**first, "same": images["images"]["same"]}}
    datasets = [*before.get("datasets", []), *map(_dataset, here)]
    return {
        "bases": bases,
        "licences": {**licences_of(bases.values()), **before.get("licences", {})},
        **images,
        "recipe": recipe.about,
        "stages": [*before.get("stages", []), *(_stage_line(stage) for stage in recipe.stages)],
        "datasets": list({dataset["name"]: dataset for dataset in datasets}.values()),
        "leakage": [leak.line() for leak in leaks],
    }


def _dataset(folder: Path) -> dict[str, Any]:
    """Name and licences of a prepared folder, or of the prepared folder that a folder of bitext is in."""
    for place in (folder, folder.parent):
        try:
            manifest = json.loads(fetch(place / layout.MANIFEST).read_text(encoding="utf-8"))
            return {"name": str(manifest["corpus"]["name"]), "licences": list(manifest["licences"])}
        except (OSError, *MALFORMED):
            continue
    return {"name": folder.resolve().name, "licences": []}


def _stage_line(stage: Stage) -> str:
    edges = getattr(stage, "edges", {})
    losses = "; ".join(f"{edge.loss} on {name}" for name, edge in edges.items()) or getattr(stage, "kind", "")
    languages = getattr(stage, "languages", "all")
    spoken = languages if isinstance(languages, str) else ", ".join(map(str, languages))
    return f"Stage {stage.name}: trains {', '.join(stage.train)}; {losses}; languages: {spoken}; lr {stage.lr:g}."


def losses(folder: Path, recipe: Recipe) -> Iterator[str]:
    """A line about each stage that ended below its start, and about each whose teacher's language did.

    Args:
        folder: of the run; its log has the scores.
        recipe: says which weights a stage ends with.
    """
    keep = recipe.evaluation.keep if recipe.evaluation else "last"
    rows = [row for row in read_log(folder) if "score" in row]
    for index, stage in enumerate(recipe.stages):
        own = [row for row in rows if row["stage_index"] == index]
        if len(own) > 1:
            best = max(own, key=lambda row: row["score"])  # of equal scores the first
            yield from _lower(stage, own[0], best if keep == "best" else own[-1])


def _lower(stage: Stage, start: dict[str, Any], end: dict[str, Any]) -> Iterator[str]:
    began = f"warning: stage {stage.name} ended"
    if end["score"] < start["score"]:
        scores = f"score {end['score']:.1f}, {start['score']:.1f} at its start"
        yield f"{began} worse than it began: {scores}; lower lr, or set evaluation.keep=best"
    if any(stage.trains(tower) for tower in (*STUDENT, "lora")):
        for name in start:
            if name.startswith(f"{TEACHER_LANGUAGE}_") and end.get(name, start[name]) < start[name]:
                scores = f"{name} {end[name]:.1f}, {start[name]:.1f} at its start"
                yield f"{began} below its start in {TEACHER_LANGUAGE}: {scores}"
