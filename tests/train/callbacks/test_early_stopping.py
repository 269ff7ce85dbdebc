"""What scores decide: which weights are kept, and when a stage or a run ends."""

from pathlib import Path

import pytest

from mclip_kit.config.recipe import Evaluation
from mclip_kit.errors import DataError
from mclip_kit.tasks.base import Scores
from mclip_kit.train.callbacks.early_stopping import Best, degraded, final_score, out_of_patience, update_best
from mclip_kit.train.run import Run
from tests.train.runs import recipe_of


def after(*scores: float) -> Best:
    """What is known after some scores, ten steps apart."""
    best = None
    for step, score in enumerate(scores):
        best = update_best(best, 10 * step, score)
    assert best
    return best


def test_of_equal_scores_the_first_is_the_best() -> None:
    assert after(3.0, 5.0, 4.0, 5.0) == {"score": 5.0, "step": 10, "start": 3.0, "now": 5.0, "stale": 2}


def test_the_final_score_is_that_of_the_weights_that_are_kept() -> None:
    best = after(3.0, 5.0, 4.0)
    assert final_score(best, Evaluation(keep="best")) == 5.0
    assert final_score(best, Evaluation(keep="last")) == 4.0


@pytest.mark.parametrize(
    ("scores", "ends"), [((3.0,), False), ((3.0, 2.0), False), ((3.0, 2.0, 3.0), True), ((3.0, 2.0, 4.0, 4.0), False)]
)
def test_patience_counts_consecutive_evaluations_without_a_better_score(scores: tuple[float, ...], ends: bool) -> None:
    assert bool(out_of_patience(after(*scores), Evaluation(keep="best", patience=2))) == ends
    assert out_of_patience(after(*scores), Evaluation(keep="best")) is None
    assert out_of_patience(after(*scores), None) is None


def test_a_checkpoint_from_before_patience_existed_counts_from_now() -> None:
    older = {"score": 5.0, "step": 10, "start": 3.0, "now": 4.0}
    assert out_of_patience(older, Evaluation(keep="best", patience=1)) is None
    assert update_best(older, 20, 4.0)["stale"] == 1


def test_degraded_is_far_below_the_score_at_the_start() -> None:
    evaluation = Evaluation(stop_below_start=2)
    assert degraded(after(5.0, 3.0), evaluation) is None
    assert "from 5.0 at step 0 to 2.9" in str(degraded(after(5.0, 2.9), evaluation))
    assert degraded(after(5.0, 0.0), Evaluation()) is None


def test_a_score_that_falls_far_ends_the_run(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path, "evaluation.stop_below_start=5")
    scores = iter([50.0, 47.0, 44.0])
    falling = Run(recipe, tmp_path / "run", lambda model, cache, task: Scores(next(scores), {}))
    with pytest.raises(DataError, match=r"fell from 50\.0 at step 0 to 44\.0.* of step 0, are in .*best\.pt"):
        falling.go()
