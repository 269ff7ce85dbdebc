"""How a run scores its model while it trains: by the evaluation that the task of each stage names."""

from collections.abc import Callable
from typing import Any

from mclip_kit.config.recipe import Recipe
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.base import EVALUATIONS, Scorer, Validation
from mclip_kit.tasks.base import Scores


def evaluator(recipe: Recipe) -> Callable[[Any, Any, Any], Scores] | None:
    """(model, feature cache, task) -> scores, as the recipe's section `evaluation` says; None without that section.

    The data of an evaluation is opened when it is needed for the first time.

    Raises:
        RecipeError: (when it is called) `evaluation.metric` is unknown; the message lists the known names.
    """
    if recipe.evaluation is None:
        return None
    scorers: dict[str, Scorer] = {}

    def score(model: Any, cache: Any, task: Any) -> Scores:
        validation = EVALUATIONS[task.evaluation].validation
        assert validation, f"the evaluation {task.evaluation} cannot score a model while it trains"
        if task.evaluation not in scorers:
            scorers[task.evaluation] = validation.open(recipe)
        values = scorers[task.evaluation](model, cache, task)
        best = values[metric_of(recipe, task, validation, values)]
        shown = tuple(name for name in validation.shown if name in values)
        return Scores(best, {"score": best, **values}, ("score", *shown))

    return score


def metric_of(recipe: Recipe, task: Any, validation: Validation, values: dict[str, Any]) -> str:
    """The value that decides which weights are best: the recipe's metric, else the default of the evaluation.

    `t2i_r1` is short for `mean_t2i_r1`. A recipe with stages of several kinds may name a metric of one of their
    evaluations; the stages of the other kinds then use the default.

    Raises:
        RecipeError: there is no such value.
    """
    wanted = recipe.evaluation.metric if recipe.evaluation else None
    for name in (wanted, f"mean_{wanted}"):
        if name in values:
            return str(name)
    if wanted is None or (len({type(stage) for stage in recipe.stages}) > 1 and _owned_elsewhere(wanted, task)):
        return validation.default(task)
    raise RecipeError(f"evaluation.metric: there is no {wanted}; there are {', '.join(values)}")


def _owned_elsewhere(name: str, task: Any) -> bool:
    others = [EVALUATIONS[other].validation for other in EVALUATIONS if other != task.evaluation]
    return any(isinstance(other, Validation) and other.owns(name) for other in others)
