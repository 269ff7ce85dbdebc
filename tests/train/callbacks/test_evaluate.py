"""When a stage is evaluated, and by which metric."""

from pathlib import Path

import pytest

from mclip_kit.errors import RecipeError
from mclip_kit.train.logging import read_log
from tests.train.runs import only_stage, recipe_of, train


def test_evaluation_by_steps_and_by_a_named_metric(squares: Path, tmp_path: Path) -> None:
    how = ["evaluation.every_steps=4", "evaluation.metric=de_t2i_r1"]
    train(recipe_of(squares, tmp_path, *how, **only_stage(squares, 1)), tmp_path / "run")
    scored = [row for row in read_log(tmp_path / "run") if "score" in row]
    assert [row["step"] for row in scored] == [0, 4, 8, 12, 16, 18]
    assert all(row["score"] == row["de_t2i_r1"] for row in scored)


def test_an_unknown_metric_is_refused_with_the_known_ones(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.metric: there is no beauty; there are mean_recall, t2i_r1"):
        train(recipe_of(squares, tmp_path, "evaluation.metric=beauty"), tmp_path / "run")
