"""The metric that decides which weights are best, and what is refused before any weight is loaded."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.validation import Evaluator, evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.tasks.base import TASKS
from mclip_kit.tasks.triangle import TriangleTask
from mclip_kit.train.build import build_model
from tests import tiny

TRANSLATE: dict[str, Any] = {"name": "mte", "kind": "translate", "train": ["encoder", "decoder"], "lr": 1e-3}
TRANSLATE |= {"steps": 2, "batch_tokens": 200}


def recipe_of(squares: Path, stages: Sequence[int | dict[str, Any]] = (0, 1, 2), **evaluation: Any) -> Recipe:
    """The tiny recipe with some of its stages, or others, and keys of its evaluation."""
    tree = tiny.recipe(squares)
    tree["stages"] = [tree["stages"][stage] if isinstance(stage, int) else stage for stage in stages]
    if 0 not in stages:
        tree["teacher"]["weights"] = "random"
    if not any(isinstance(stage, int) for stage in stages):
        del tree["teacher"], tree["projector"]
    tree["evaluation"] |= evaluation
    return parse(tree, Recipe, "tiny")


def metrics(recipe: Recipe) -> list[str | None]:
    """The value of each stage that decides; None: the default."""
    return list(Evaluator(recipe)._metrics.values())


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        (None, [None, None]),
        ("mean_recall", ["mean_mean_recall", None]),
        ("mean_mean_recall", ["mean_mean_recall", None]),  # as earlier versions wrote it
        ("i2t_r5", ["mean_i2t_r5", None]),
        ("mean_t2i_r1", ["mean_t2i_r1", None]),
        ("fr_t2i_r1", ["fr_t2i_r1", None]),
        ("teacher_i2t_r10", ["teacher_i2t_r10", None]),
        ("bleu", [None, "bleu"]),
        ("en-de_chrf", [None, "en-de_chrf"]),
        ("retrieval_accuracy", [None, "retrieval_accuracy"]),
    ],
)
def test_the_value_that_decides_in_each_stage(squares: Path, metric: str | None, found: list[str | None]) -> None:
    assert metrics(recipe_of(squares, [1, TRANSLATE], metric=metric)) == found


@pytest.mark.parametrize(
    ("stages", "metric", "message"),
    [
        ([1], "bleu", r"there is no bleu; there are mean_recall, t2i_r1, .*, i2t_r10, de_t2i_r1, .*, teacher_i2t_r10$"),
        ([1], "mean_recal", r"there is no mean_recal; did you mean mean_recall\?"),
        ([1], "recall@1", r"there is no recall@1"),
        ([1], "x_bleu_t2i_r1", r"there is no x_bleu_t2i_r1"),
        ([1], "ja_t2i_r1", r"there is no ja_t2i_r1; did you mean"),
        ([1], "loss", r"there is no loss"),
        ([TRANSLATE], "mean_recall", r"there is no mean_recall; there are bleu, chrf, retrieval_accuracy"),
        ([TRANSLATE], "BLEU", r"there is no BLEU; did you mean bleu\?"),
        ([TRANSLATE], "de-fr_bleu", r"there is no de-fr_bleu; did you mean"),
        ([TRANSLATE], "retrieval_error", r"is lower for better weights, .*; write retrieval_accuracy"),
        ([1, TRANSLATE], "zzz", r"there is no zzz; there are mean_recall, .*, bleu"),
    ],
)
def test_a_metric_that_no_stage_has_is_refused_at_the_start(
    squares: Path, stages: list[Any], metric: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=rf"^evaluation\.metric: .*{message}"):
        evaluator(recipe_of(squares, stages, metric=metric))


@pytest.mark.parametrize(
    ("stages", "evaluation", "message"),
    [
        ([1], {"split": "dev"}, r"evaluation\.split: .*no captions in split 'dev'; there are test, train, valid"),
        ([TRANSLATE], {"split": "dev"}, r"evaluation\.split: stage mte: .*no sentences in split 'dev'; there are"),
        ([1], {"languages": ["de", "ja"]}, r"evaluation\.languages: .*no valid captions in ja; there are de, en, fr"),
        ([TRANSLATE], {"languages": ["ja"]}, r"evaluation\.languages: stage mte has no direction .*; there are en-de"),
    ],
)
def test_what_the_data_has_not_is_refused_at_the_start(
    squares: Path, stages: list[Any], evaluation: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        evaluator(recipe_of(squares, stages, **evaluation))


def test_languages_choose_the_directions_of_translation(squares: Path) -> None:
    stage = TRANSLATE | {"directions": ["en-de", "fr-en"]}
    for languages, metric in ((["de"], "en-de_bleu"), (["fr", "en"], "fr-en_bleu"), ("all", "fr-en_bleu")):
        assert metrics(recipe_of(squares, [stage], languages=languages, metric=metric)) == [metric]
    with pytest.raises(RecipeError, match="there is no fr-en_bleu"):
        evaluator(recipe_of(squares, [stage], languages=["de"], metric="fr-en_bleu"))


def test_an_evaluation_that_no_stage_has_is_refused_and_one_that_some_lack_is_told(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TASKS[type(recipe_of(squares, [TRANSLATE]).stages[0])], "evaluation", "")
    with pytest.raises(RecipeError, match="evaluation: stages of kind translate are not scored while training"):
        evaluator(recipe_of(squares, [TRANSLATE]))
    scored = evaluator(recipe_of(squares, [1, TRANSLATE], metric="mean_recall"))
    assert scored
    assert scored.describe() == [
        f"  distill: scored on valid of {squares} (12 pictures), by mean recall, mean of languages; keeps its best "
        "weights",
        "  mte: not scored (kind translate); keeps its last weights",
    ]


@pytest.mark.parametrize(("number", "name"), [(0, "teacher_t2i_r1"), (2, "mean_t2i_r1")])
def test_the_scores_of_a_task(squares: Path, number: int, name: str) -> None:
    recipe = recipe_of(squares)
    score, model = evaluator(recipe), build_model(recipe).eval()
    assert score
    found = score(model, FeatureCache(), task_of(recipe, number, model))
    assert found.score == found.values["score"] == found.values[name]
    assert found.shown == tuple(dict.fromkeys([name, "mean_t2i_r1", "mean_t2i_r10", "teacher_t2i_r1"]))
    assert found.labels["mean_t2i_r10"] == "text-to-image R@10, mean of languages"
    assert found.labels["teacher_t2i_r1"] == "text-to-image R@1, teacher's text tower"


def test_a_default_that_the_data_cannot_give_is_an_error_in_one_line(squares: Path, tmp_path: Path) -> None:
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "data")))
    table = tmp_path / "data" / "captions.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\ten\tvalid\t", "\ten\ttest\t"), encoding="utf-8")
    recipe = recipe_of(tmp_path / "data", languages=["de"])
    score, model = evaluator(recipe), build_model(recipe).eval()
    assert score
    with pytest.raises(RecipeError, match=r"stage teacher: text-to-image R@1, teacher's text tower: valid of .* has"):
        score(model, FeatureCache(), task_of(recipe, 0, model))


def task_of(recipe: Recipe, number: int, model: Any) -> Any:
    """A stage of the recipe as a task, without training rows."""
    task = TriangleTask.__new__(TriangleTask)
    task.stage = recipe.stages[number]
    task.rows = SimpleNamespace(languages=["de"])
    return task


def test_without_the_section_nothing_is_scored(squares: Path) -> None:
    assert evaluator(parse(tiny.recipe(squares) | {"evaluation": None}, Recipe, "tiny")) is None
