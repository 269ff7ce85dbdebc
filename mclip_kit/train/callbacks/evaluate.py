"""When a stage is evaluated: at its start, at its end, and every so many epochs or steps."""

from mclip_kit.train.callbacks.base import Callback


class Evaluate(Callback):
    """Evaluates while training, if the recipe has an evaluation and the kind of stage too."""

    def before_stage(self) -> None:
        """Evaluate the weights with which the stage starts."""
        if self.at.step == 0:
            self.at.evaluate()

    def after_step(self) -> None:
        """Evaluate if it is time."""
        at = self.at
        if at.done or self._is_due():
            at.evaluate()

    def _is_due(self) -> bool:
        evaluation = self.at.evaluation
        if evaluation is None:
            return False
        steps = evaluation.every_steps or evaluation.every_epochs * self.at.loop.steps_per_epoch
        return self.at.step % steps == 0
