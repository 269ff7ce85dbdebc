"""What a stage's scores decide: which weights are best, and when it ends before its last step."""

from mclip_kit.config.recipe import Evaluation

Best = dict[str, float]
"""Of a stage: `start`, the score at step 0; `now`, the last one; `score` and `step` of the best; `stale`, the
evaluations since."""


def update_best(best: Best | None, step: int, score: float) -> Best:
    """What is known with one more score."""
    if best is None or score > best["score"]:
        return {"score": score, "step": step, "start": best["start"] if best else score, "now": score, "stale": 0}
    return {**best, "now": score, "stale": best.get("stale", 0) + 1}


def kept(best: Best, evaluation: Evaluation) -> float:
    """The score of the weights with which the stage ends."""
    return best["score" if evaluation.keep == "best" else "now"]


def out_of_patience(best: Best | None, evaluation: Evaluation | None) -> str | None:
    """Why the stage ends here, if its score has not risen for as long as the recipe has patience."""
    patience = evaluation.patience if evaluation else None
    if not (best and patience and best.get("stale", 0) >= patience):
        return None
    without = f"{patience} evaluation{'s' * (patience > 1)} without a better score"
    return f"{without}; the stage ends with its best weights, of step {best['step']:.0f}"


def degraded(best: Best, evaluation: Evaluation | None) -> str | None:
    """Why the run ends here, if the score has fallen far below where the stage began."""
    margin = evaluation.stop_below_start if evaluation else None
    if margin is None or best["now"] >= best["start"] - margin:
        return None
    return (
        f"the score fell from {best['start']:.1f} at step 0 to {best['now']:.1f}, more than "
        "evaluation.stop_below_start allows; lower lr, and choose another --out; the best weights, of step "
        f"{best['step']:.0f}, are in"
    )
