"""How a run scores its model while it trains: by the evaluation that the task of each stage names."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import Stage
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.base import EVALUATIONS, Opened, Validation
from mclip_kit.tasks.base import TASKS, Scores

BETTER = {"retrieval_error": "retrieval_accuracy"}
"""Values of the log that are lower for better weights -> the metric to select by."""


def evaluator(recipe: Recipe) -> "Evaluator | None":
    """The evaluations that a recipe's section `evaluation` asks for, on their data; None without that section.

    Raises:
        RecipeError: no stage has an evaluation, the data lacks the split or a language, or the metric is unknown.
    """
    return Evaluator(recipe) if recipe.evaluation else None


class Evaluator:
    """Scores a model in every stage that has an evaluation; what the recipe asks of it is checked here, at the start.

    Args:
        recipe: it has a section `evaluation`.
    Raises:
        RecipeError: see `evaluator`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        by_name: dict[str, list[Stage]] = {}
        for stage in recipe.stages:
            by_name.setdefault(TASKS[type(stage)].evaluation, []).append(stage)
        if set(by_name) == {""}:
            kinds = ", ".join(dict.fromkeys(kind_of(stage) for stage in recipe.stages))
            raise RecipeError(f"evaluation: stages of kind {kinds} are not scored while training; leave it out")
        self._opened = {name: validation_of(name).open(recipe, stages) for name, stages in by_name.items() if name}
        self._metrics = metrics_of_stages(recipe, self._opened)

    def share(self, model: Any, cache: Any, task: Any) -> Any:
        """This process's share of the work of scoring; None if the evaluation has no shares."""
        share = self._opened[task.evaluation].share
        return share(model, cache, task) if share else None

    def __call__(self, model: Any, cache: Any, task: Any, shares: Sequence[Any] = ()) -> Scores:
        """Score the model for a task; the cache has features that are valid.

        Args:
            shares: what `share` gave in all processes, if it was called.
        Raises:
            RecipeError: the data has nothing that the default metric of the stage is made from.
        """
        validation = validation_of(task.evaluation)
        opened = self._opened[task.evaluation]
        values = opened.score(model, cache, task, *([shares] if opened.share else []))
        metric = self._metrics[task.stage.name] or validation.default(task)
        if metric not in values:
            data = self._opened[task.evaluation].data
            raise RecipeError(
                f"stage {task.stage.name}: {validation.words(metric)}: {data} has nothing to score it on; "
                "set evaluation.metric, or evaluation.split"
            )
        shown = tuple(dict.fromkeys(name for name in (metric, *validation.shown) if name in values))
        labels = {name: validation.words(name) for name in shown}
        return Scores(values[metric], {"score": values[metric], **values}, shown, labels)

    def describe(self) -> list[str]:
        """A line for each stage: what it is scored on and by which metric, or that it is not scored."""
        keep = self._recipe.evaluation.keep if self._recipe.evaluation else "last"
        lines = []
        for stage in self._recipe.stages:
            name = TASKS[type(stage)].evaluation
            if name:
                metric = self._metrics[stage.name]
                by = f"by {validation_of(name).words(metric)}" if metric else "by the metric that its lines begin with"
                lines.append(f"  {stage.name}: scored on {self._opened[name].data}, {by}; keeps its {keep} weights")
            else:
                lines.append(f"  {stage.name}: not scored (kind {kind_of(stage)}); keeps its last weights")
        return lines


def kind_of(stage: Stage) -> str:
    """The value of a stage's key `kind`."""
    return str(type(stage).model_fields["kind"].default)


def validation_of(name: str) -> Validation:
    """How the evaluation of that name scores a model while it trains."""
    validation = EVALUATIONS[name].validation
    assert validation, f"the evaluation {name} cannot score a model while it trains"
    return validation


def metrics_of_stages(recipe: Recipe, opened: Mapping[str, Opened]) -> dict[str, str | None]:
    """Stage -> the value of its log that decides which weights are best; None: the default of its evaluation.

    The metric of a recipe need not be one of every stage: the stages that do not have it use their default.

    Raises:
        RecipeError: no stage has a metric of that name.
    """
    wanted = recipe.evaluation.metric if recipe.evaluation else None
    evaluations = {stage.name: TASKS[type(stage)].evaluation for stage in recipe.stages}
    names = {
        stage.name: opened[evaluations[stage.name]].names(stage) for stage in recipe.stages if evaluations[stage.name]
    }
    found = {stage: wanted and _value_of(wanted, own) for stage, own in names.items()}
    if wanted and not any(found.values()):
        raise RecipeError(
            f"evaluation.metric: {_unknown(wanted, list(dict.fromkeys(n for own in names.values() for n in own)))}"
        )
    return found


def _value_of(wanted: str, names: Mapping[str, str]) -> str | None:
    """The value of the log that a recipe means; the names of values, such as `mean_t2i_r1`, are taken too."""
    value = names.get(wanted, wanted)
    return value if value in names.values() else None


def _unknown(wanted: str, names: list[str]) -> str:
    """What is wrong with a metric, and what to write instead."""
    for worse, better in BETTER.items():
        if wanted.endswith(worse):
            return f"{wanted} is lower for better weights, so it cannot select them; write {better}"
    near = difflib.get_close_matches(wanted.lower(), names, n=1)
    if near:
        return f"there is no {wanted}; did you mean {near[0]}?"
    return f"there is no {wanted}; there are {', '.join(names)}"
