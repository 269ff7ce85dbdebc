"""`projector.init: ridge` in a run: what a stage starts from, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.errors import RecipeError
from mclip_kit.models.closed_form import LAMBDAS, Moments, set_linear
from mclip_kit.train.callbacks.closed_form import ClosedForm, _pairs
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import recipe_of, train


def ridge_recipe(data: Path, folder: Path, *changes: str) -> Recipe:
    """Teacher learning alone, by a frozen random encoder, two epochs."""
    tree = tiny.recipe(data)
    distill = tree["stages"][1] | {"train": ["projector"], "epochs": 1}
    return recipe_of(
        data,
        folder,
        *changes,
        stages=[distill],
        teacher=tree["teacher"] | {"weights": "random"},
        encoder=tree["encoder"] | {"weights": "random"},
        projector={"kind": "mlp", "pool": "mean", "noise": 0.1, "init": "ridge"},
    )


def test_the_first_score_is_that_of_the_best_lambda(squares: Path, tmp_path: Path) -> None:
    run = train(ridge_recipe(squares, tmp_path), tmp_path / "run")
    first = next(row for row in read_log(tmp_path / "run") if "mean_t2i_r1" in row)
    again = Run(run.recipe, tmp_path / "again", run.evaluator)
    at = again._begin(0, TrainState(0))
    assert [type(callback) for callback in at.callbacks].count(ClosedForm) == 1
    scores = []
    with torch.no_grad():
        moments = Moments.of(_pairs(at))
        for strength in LAMBDAS:
            set_linear(again.model.projector, moments, strength)
            found = again.score(at.task)
            assert found
            scores.append(found.score)
    assert first["step"] == 0
    assert first["mean_t2i_r1"] == pytest.approx(max(scores))
    assert moments.rows == len(at.task.rows)
    assert np.isfinite(scores).all()


def test_a_recipe_that_cannot_choose_lambda_is_refused(squares: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    ridge_recipe(squares, tmp_path)
    with pytest.raises(RecipeError, match=r"projector\.init has no effect; it is for recipes with evaluation"):
        load(path, ["evaluation=null"])
    with pytest.raises(RecipeError, match="transformer projector has no closed form"):
        load(path, ["projector.kind=transformer", "projector.noise=0"])
