"""Scores while training: which evaluation, and which of its values decides."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.base import EVALUATIONS, Validation
from mclip_kit.evaluate.validation import evaluator, metric_of
from mclip_kit.features.cache import FeatureCache
from mclip_kit.train.build import build_model
from tests import tiny

RETRIEVAL = SimpleNamespace(evaluation="retrieval", languages=["de"])
TEACHER = SimpleNamespace(evaluation="retrieval", languages=[])
TRANSLATION = SimpleNamespace(evaluation="translation")
VALUES: dict[str, dict[str, Any]] = {
    "retrieval": {"mean_t2i_r1": 1.0, "teacher_t2i_r1": 8.0, "mean_mean_recall": 2.0, "de_t2i_r1": 3.0},
    "translation": {"bleu": 4.0, "chrf": 5.0, "en-de_bleu": 6.0, "retrieval_error": 7.0},
}


def validation_of(task: Any) -> Validation:
    validation = EVALUATIONS[task.evaluation].validation
    assert validation
    return validation


def wanting(metric: str | None, kinds: int = 1) -> Any:
    """A recipe with a metric, and with stages of one kind or of two."""
    return SimpleNamespace(evaluation=SimpleNamespace(metric=metric), stages=[1, "two"][:kinds])


@pytest.mark.parametrize(
    ("task", "metric", "kinds", "name"),
    [
        (RETRIEVAL, None, 1, "mean_t2i_r1"),
        (TEACHER, None, 1, "teacher_t2i_r1"),
        (RETRIEVAL, "mean_recall", 1, "mean_mean_recall"),
        (RETRIEVAL, "de_t2i_r1", 1, "de_t2i_r1"),
        (RETRIEVAL, "en-de_bleu", 2, "mean_t2i_r1"),
        (RETRIEVAL, "retrieval_error", 2, "mean_t2i_r1"),
        (TRANSLATION, None, 1, "bleu"),
        (TRANSLATION, "chrf", 1, "chrf"),
        (TRANSLATION, "en-de_bleu", 2, "en-de_bleu"),
        (TRANSLATION, "mean_recall", 2, "bleu"),
    ],
)
def test_the_value_that_decides(task: Any, metric: str | None, kinds: int, name: str) -> None:
    assert metric_of(wanting(metric, kinds), task, validation_of(task), VALUES[task.evaluation]) == name


@pytest.mark.parametrize(
    ("task", "metric", "kinds"),
    [(RETRIEVAL, "bleu", 1), (RETRIEVAL, "beauty", 2), (TRANSLATION, "mean_recall", 1), (TRANSLATION, "beauty", 2)],
)
def test_a_metric_that_no_evaluation_of_the_recipe_has_is_refused(task: Any, metric: str, kinds: int) -> None:
    known = ", ".join(VALUES[task.evaluation])
    with pytest.raises(RecipeError, match=rf"evaluation\.metric: there is no {metric}; there are {known}"):
        metric_of(wanting(metric, kinds), task, validation_of(task), VALUES[task.evaluation])


@pytest.mark.parametrize(("task", "name"), [(TEACHER, "teacher_t2i_r1"), (RETRIEVAL, "mean_t2i_r1")])
def test_the_scores_of_a_task(squares: Path, task: Any, name: str) -> None:
    recipe = parse(tiny.recipe(squares), Recipe, "tiny")
    score = evaluator(recipe)
    assert score
    found = score(build_model(recipe).eval(), FeatureCache(), task)
    assert found.score == found.values["score"] == found.values[name]
    assert found.shown == ("score", "mean_t2i_r1", "mean_t2i_r10", "teacher_t2i_r1")
    assert set(found.shown) <= found.values.keys()


def test_without_the_section_nothing_is_scored(squares: Path) -> None:
    assert evaluator(parse(tiny.recipe(squares) | {"evaluation": None}, Recipe, "tiny")) is None
