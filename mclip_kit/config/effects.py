"""Settings without effect: each key of a recipe that only some recipes read, with the condition under which they do.

A key counts as set if it differs from its default, so that a resolved recipe, which has every key, can be read again.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from mclip_kit.config.edges import PAIRS, Edge
from mclip_kit.config.stages import Stage, TranslationStage, TriangleStage

Rules = dict[str, tuple[Callable[..., bool], str]]
"""Key of a section -> whether it has an effect there, and what it is for."""


def _knows_pairs(edge: Edge, stage: TriangleStage) -> bool:
    return edge.loss in PAIRS


EDGE: Rules = {
    "temperature": (
        lambda edge, stage: edge.loss in PAIRS or edge.loss == "kl",
        "contrastive, sigmoid and kl; other losses have none",
    ),
    "bias": (lambda edge, stage: edge.loss == "sigmoid", "sigmoid"),
    "positives": (_knows_pairs, "contrastive and sigmoid"),
    "duplicates": (_knows_pairs, "contrastive and sigmoid"),
    "missing_teacher": (
        lambda edge, stage: stage.languages != ["en"],
        "rows in other languages than the teacher's, and this stage has none",
    ),
    "normalize": (lambda edge, stage: edge.loss == "mse", "mse; other losses always normalise"),
}
"""Called with the edge and its stage."""


def _computes(stage: Stage) -> bool:
    return any(stage.trains(tower) for tower in ("image", "teacher_text", "encoder", "decoder", "lora"))


STAGE: Rules = {
    "layer_decay": (lambda stage: stage.trains("encoder") or stage.trains("lora"), "stages that train the encoder"),
    "checkpointing": (_computes, "stages that train a tower with layers"),
}
"""Called with a stage of any kind."""


TRIANGLE: Rules = {
    "templates": (
        lambda stage: "teacher_text" in stage.vertices and stage.templates != ["{}"],
        "stages with teacher_text on an edge, and patterns that change a text",
    ),
    "max_tokens": (lambda stage: "student_text" in stage.vertices, "stages with student_text on an edge"),
    "include_english": (lambda stage: stage.data == "bitext", "data: bitext; captions have their own English"),
    "language_temperature": (lambda stage: stage.several_languages, "several languages, and this stage has one"),
    "shuffle_window": (lambda stage: stage.shuffle_window > stage.batch_size, "windows of more rows than batch_size"),
    "micro_batch": (lambda stage: stage.micro_batch < stage.batch_size, "parts that are smaller than batch_size"),
    "augment": (
        lambda stage: bool(stage.augment and (stage.augment.shift or stage.augment.colour)),
        "a shift or a colour above 0",
    ),
}
TRANSLATION: Rules = {
    "language_temperature": (
        lambda stage: stage.directions == "all" or len(set(stage.directions)) > 1,
        "several directions, and this stage has one",
    ),
}


def _trains_projector(recipe: Any) -> bool:
    return any(stage.trains("projector") for stage in recipe.stages)


PROJECTOR: Rules = {
    "layers": (lambda part, recipe: part.kind == "transformer", "kind transformer"),
    "hidden": (lambda part, recipe: part.kind != "transformer", "kinds linear, mlp and altclip"),
    "dropout": (
        lambda part, recipe: part.kind in ("mlp", "transformer") and _trains_projector(recipe),
        "kinds mlp and transformer, while a stage trains the projector",
    ),
    "noise": (
        lambda part, recipe: part.kind in ("linear", "mlp") and _trains_projector(recipe),
        "kinds linear and mlp, while a stage trains the projector",
    ),
    "init": (
        lambda part, recipe: _trains_projector(recipe) and recipe.evaluation is not None,
        "recipes with evaluation, on whose split lambda is chosen, and a stage that trains the projector",
    ),
}
"""Like the next two, called with the section and the recipe."""


def _keeps(cache: Any, recipe: Any) -> bool:
    return bool(cache.features != "off")


def _keeps_tokens(cache: Any, recipe: Any) -> bool:
    reads = recipe.projector is None or recipe.projector.kind == "transformer"
    return cache.features in ("tokens", "auto") and (reads or _translates(recipe))


CACHE: Rules = {
    "features": (
        lambda cache, recipe: cache.features != "tokens" or _keeps_tokens(cache, recipe),
        "tokens: transformer projectors and translation stages; use pooled or auto",
    ),
    "folder": (_keeps, "features that are kept, but cache is off"),
    "dtype": (
        lambda cache, recipe: _keeps(cache, recipe) and (cache.dtype != "int8" or _keeps_tokens(cache, recipe)),
        "features that are kept, and int8 for token states alone",
    ),
    "max_bad_fraction": (
        lambda cache, recipe: recipe.data.captions is not None,
        "pictures, but data.captions is not given",
    ),
}


def _translates(recipe: Any) -> bool:
    return any(isinstance(stage, TranslationStage) for stage in recipe.stages)


EVALUATION: Rules = {
    "sentences": (lambda part, recipe: _translates(recipe), "translation stages"),
    "beams": (lambda part, recipe: _translates(recipe), "translation stages"),
    "every_epochs": (
        lambda part, recipe: part.every_steps is None,
        "evaluations without every_steps; leave one of the two out",
    ),
}


def without_effect(recipe: Any) -> Iterator[str]:
    """A line for each key of a recipe that is set and has no effect."""
    for name, rules in (("projector", PROJECTOR), ("cache", CACHE), ("evaluation", EVALUATION)):
        if getattr(recipe, name) is not None:
            yield from _idle(name, getattr(recipe, name), rules, recipe)
    if recipe.data.shares and all(stage.data != "bitext" for stage in recipe.stages):
        yield "data.bitext: shares have no effect: no stage has data: bitext; name one folder"
    if recipe.data.unpaired and not any(getattr(stage, "mine", None) for stage in recipe.stages):
        yield "data.unpaired has no effect: no stage has mine; give one mine: {}"
    if "en" in recipe.data.unpaired:
        yield "data.unpaired.en has no effect: sentences are paired with English ones; leave it out"
    for number, stage in enumerate(recipe.stages):
        where = f"stages.{number}"
        yield from _idle(where, stage, STAGE)
        if isinstance(stage, TriangleStage):
            yield from _idle(where, stage, TRIANGLE)
            for name, edge in stage.edges.items():
                yield from _idle(f"{where}.edges.{name}", edge, EDGE, stage)
        elif isinstance(stage, TranslationStage):
            yield from _idle(where, stage, TRANSLATION)


def _idle(where: str, section: BaseModel, rules: Rules, *more: Any) -> Iterator[str]:
    for key, (has_effect, use) in rules.items():
        is_set = getattr(section, key) != type(section).model_fields[key].get_default(call_default_factory=True)
        if is_set and not has_effect(section, *more):
            yield f"{where}.{key} has no effect; it is for {use}"
