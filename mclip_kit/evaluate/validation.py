"""What a run is scored by while it trains: by the kind of each stage."""

from typing import Any

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import TranslationStage, TriangleStage
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate import retrieval, translation
from mclip_kit.features.cache import FeatureCache


def evaluator(recipe: Recipe) -> Any:
    """(model, store, stage) -> values for the log, as the recipe's evaluation says; None if it has none."""
    asked = recipe.evaluation
    if asked is None:
        return None
    kinds: dict[type, Any] = {}
    if recipe.triangles:
        captions = read_captions(str(recipe.data.captions))
        kinds[TriangleStage] = retrieval.evaluator(captions, asked.split, asked.languages, asked.metric)
    if recipe.translations:
        kinds[TranslationStage] = translation.evaluator(recipe)

    def score_stage(model: Any, store: FeatureCache, stage: TriangleStage | TranslationStage) -> dict[str, Any]:
        values: dict[str, Any] = kinds[type(stage)](model, store, stage)
        return values

    return score_stage
