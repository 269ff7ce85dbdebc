"""What a run is scored by while it trains."""

from collections.abc import Callable
from typing import Any

from mclip_kit.config.recipe import Recipe
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate import retrieval, translation
from mclip_kit.features.cache import FeatureCache
from mclip_kit.tasks.base import Scores, Task

SHOWN = {
    "retrieval": ("mean_t2i_r1", "mean_t2i_r10", "teacher_t2i_r1"),
    "translation": ("bleu", "chrf", "retrieval_error"),
}


def evaluator(recipe: Recipe) -> Callable[[Any, FeatureCache, Task], Scores] | None:
    """(model, cache, task) -> scores, as the recipe's evaluation says; None if it has none."""
    asked = recipe.evaluation
    if asked is None:
        return None

    def score_stage(model: Any, cache: FeatureCache, task: Task) -> Scores:
        if task.evaluation == "retrieval":
            captions = read_captions(str(recipe.data.captions))
            made = retrieval.evaluator(captions, asked.split, asked.languages, asked.metric)
        else:
            made = translation.evaluator(recipe)
        values = made(model, cache, task.stage)
        return Scores(values.pop("score"), values, SHOWN[task.evaluation])

    return score_stage
