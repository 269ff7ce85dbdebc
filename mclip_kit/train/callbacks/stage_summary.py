"""One line at the end of a stage: what was trained, how long it took, and the score before and after."""

import time

from mclip_kit.tasks.base import Scores
from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.callbacks.early_stopping import final_score
from mclip_kit.train.checkpoint import TrainState


class StageSummary(Callback):
    """Prints that line; the time of a stage that was resumed counts from its first start, without the pauses."""

    def __init__(self, at: Progress, state: TrainState) -> None:
        super().__init__(at, state)
        self._before = float(state.callbacks.get("StageSummary", {}).get("seconds", 0.0))
        self._began = time.monotonic()
        self._metric = ""

    def after_evaluation(self, scores: Scores) -> None:
        """Remember what the score is."""
        name = next(iter(scores.shown), "")
        self._metric = scores.labels.get(name, name) or "score"

    def add_to_checkpoint(self, state: TrainState) -> None:
        """The seconds so far."""
        state.callbacks["StageSummary"] = {"seconds": self._seconds()}

    def after_stage(self) -> None:
        """Print the line."""
        at = self.at
        steps = f"{at.step:,} step{'s' * (at.step != 1)}"
        line = f"{at.loop.name}: trained {', '.join(at.stage.train)}, {steps}, {duration(self._seconds())}"
        if at.best and at.evaluation:
            line += f"; {self._metric} {at.best['start']:.1f} before, {final_score(at.best, at.evaluation):.1f} after"
            if at.evaluation.keep == "best" and at.best["step"] != at.step:
                line += f", with the weights of step {at.best['step']:.0f}, the best"
        at.run.cache.note(line)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours.

    >>> duration(12.3), duration(90), duration(7260)
    ('12 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
