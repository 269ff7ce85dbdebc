"""What scores decide, as plain numbers."""

import pytest

from mclip_kit.config.recipe import Evaluation
from mclip_kit.train.verdict import Best, degraded, kept, out_of_patience, update_best


def after(*scores: float) -> Best:
    best = None
    for step, score in enumerate(scores):
        best = update_best(best, 10 * step, score)
    assert best
    return best


def test_the_best_is_the_first_of_the_highest() -> None:
    assert after(3.0, 5.0, 4.0, 5.0) == {"score": 5.0, "step": 10, "start": 3.0, "now": 5.0, "stale": 2}


def test_the_score_of_what_is_kept() -> None:
    best = after(3.0, 5.0, 4.0)
    assert kept(best, Evaluation(keep="best")) == 5.0
    assert kept(best, Evaluation(keep="last")) == 4.0


@pytest.mark.parametrize(
    ("scores", "ends"), [((3.0,), False), ((3.0, 2.0), False), ((3.0, 2.0, 3.0), True), ((3.0, 2.0, 4.0, 4.0), False)]
)
def test_patience_is_for_evaluations_in_a_row_without_a_better_score(scores: tuple[float, ...], ends: bool) -> None:
    assert bool(out_of_patience(after(*scores), Evaluation(keep="best", patience=2))) == ends
    assert out_of_patience(after(*scores), Evaluation(keep="best")) is None
    assert out_of_patience(after(*scores), None) is None


def test_a_checkpoint_of_before_there_was_patience_counts_from_now() -> None:
    older = {"score": 5.0, "step": 10, "start": 3.0, "now": 4.0}
    assert out_of_patience(older, Evaluation(keep="best", patience=1)) is None
    assert update_best(older, 20, 4.0)["stale"] == 1


def test_spoilt_is_far_below_the_start() -> None:
    evaluation = Evaluation(stop_below_start=2)
    assert degraded(after(5.0, 3.0), evaluation) is None
    assert "from 5.0 at step 0 to 2.9" in str(degraded(after(5.0, 2.9), evaluation))
    assert degraded(after(5.0, 0.0), Evaluation()) is None
