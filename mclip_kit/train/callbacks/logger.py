"""Loss terms and scores go to RUN/metrics.jsonl, to the trackers and to the terminal."""

from mclip_kit.tasks.base import Scores
from mclip_kit.train.callbacks.base import Callback

LOG_EVERY = 10  # steps between logged rows


class Logger(Callback):
    """Logs every tenth step, the last one, and every evaluation."""

    def after_step(self) -> None:
        """Log the values of the step."""
        at = self.at
        if at.step % LOG_EVERY == 0 or at.step == at.loop.steps:
            at.run.write(at.index, at.step, at.values)

    def after_evaluation(self, scores: Scores) -> None:
        """Log all values, and print some."""
        at = self.at
        at.run.write(at.index, at.step, {"score": scores.score, **scores.values})
        shown = {scores.labels.get(name, name): scores.values[name] for name in scores.shown if name in scores.values}
        line = "; ".join(f"{name} {value:.1f}" for name, value in (shown or {"score": scores.score}).items())
        at.run.cache.note(f"  step {at.step}: {line}")
