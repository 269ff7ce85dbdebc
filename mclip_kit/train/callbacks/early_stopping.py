"""Which weights of a stage are best, and when it ends before its last step."""

from mclip_kit import layout
from mclip_kit.config.recipe import Evaluation
from mclip_kit.errors import CheckpointError, DataError
from mclip_kit.tasks.base import Scores
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.checkpoint import TrainState

Best = dict[str, float]
"""Of a stage: `start`, the score at step 0; `now`, the last score; `score` and `step` of the best; `stale`, the number
of evaluations since."""


def update_best(best: Best | None, step: int, score: float) -> Best:
    """What is known after one more score."""
    if best is None or score > best["score"]:
        return {"score": score, "step": step, "start": best["start"] if best else score, "now": score, "stale": 0}
    return {**best, "now": score, "stale": best.get("stale", 0) + 1}


def final_score(best: Best, evaluation: Evaluation) -> float:
    """The score of the weights with which the stage ends."""
    return best["score" if evaluation.keep == "best" else "now"]


def out_of_patience(best: Best, evaluation: Evaluation | None) -> str | None:
    """Why the stage ends now, if its score has not risen for `patience` evaluations."""
    patience = evaluation.patience if evaluation else None
    if not (patience and best.get("stale", 0) >= patience):
        return None
    without = f"{patience} evaluation{'s' * (patience > 1)} without a better score"
    return f"{without}; the stage ends with its best weights, of step {best['step']:.0f}"


def degraded(best: Best, evaluation: Evaluation | None) -> str | None:
    """Why the run stops now, if the score has fallen far below that of the stage's start."""
    margin = evaluation.stop_below_start if evaluation else None
    if margin is None or best["now"] >= best["start"] - margin:
        return None
    return (
        f"the score fell from {best['start']:.1f} at step 0 to {best['now']:.1f}, by more than "
        "evaluation.stop_below_start; lower lr, and choose another --out; the best weights, of step "
        f"{best['step']:.0f}, are in"
    )


class EarlyStopping(Callback):
    """Keeps the best weights in RUN/checkpoints/best.pt, and ends the stage or the run by the score."""

    def after_evaluation(self, scores: Scores) -> None:
        """Save the weights if they are the best so far.

        Raises:
            DataError: the score has fallen by more than `stop_below_start`.
        """
        at = self.at
        path = at.run.folder / layout.BEST
        at.best = update_best(at.best, at.step, scores.score)
        if at.best["step"] == at.step:
            at.run.save(TrainState(at.index, at.step, best=at.best), path)
        why = degraded(at.best, at.evaluation)
        if why:
            raise DataError(f"stage {at.stage.name}, step {at.step}: {why} {path}")
        why = out_of_patience(at.best, at.evaluation)
        if why and not at.done:
            at.log(why)
            at.done = True

    def add_to_checkpoint(self, state: TrainState) -> None:
        """The best score so far."""
        state.best = self.at.best

    def restore_weights(self) -> None:
        """The stage ends with its best weights if the recipe keeps them."""
        if self.at.best and self.at.evaluation and self.at.evaluation.keep == "best":
            best = self.at.run.read(layout.BEST)
            if (best.stage, best.step) != (self.at.index, self.at.best["step"]):  # resumed from an older checkpoint
                raise CheckpointError(
                    f"{self.at.run.folder / layout.BEST}: of step {best.step} of stage {best.stage + 1}, not of step "
                    f"{self.at.best['step']:.0f} of stage {self.at.index + 1}; start a new run with another --out"
                )
            self.at.run.load(best.model)
