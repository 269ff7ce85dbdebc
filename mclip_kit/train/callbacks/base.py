"""What comes beside the steps of a stage: callbacks with named hooks, one class a file."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mclip_kit.config.recipe import Evaluation
from mclip_kit.config.stages import Stage
from mclip_kit.tasks.base import Scores, StageModule, Task
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.loop import Loop

if TYPE_CHECKING:
    from mclip_kit.train.run import Run


@dataclass
class Progress:
    """A stage while it runs; callbacks read it, and may change `best` and `done`.

    Attributes:
        run: the run.
        index: number of the stage in the recipe.
        task: the stage's task.
        module: the model under the losses of the stage.
        loop: its optimisation.
        step: steps taken.
        values: loss terms and measures of the last step.
        rows: of the last step, over all processes.
        best: what is known of the scores of the stage, see `EarlyStopping`.
        done: the stage ends after this step.
        interrupted: the user asked to stop.
    """

    run: "Run"
    index: int
    task: Task
    module: StageModule
    loop: Loop
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    best: dict[str, float] | None = None
    done: bool = False
    interrupted: bool = False
    callbacks: list["Callback"] = field(default_factory=list)

    @property
    def stage(self) -> Stage:
        """The stage's section of the recipe."""
        stage: Stage = self.task.stage
        return stage

    @property
    def evaluation(self) -> Evaluation | None:
        """The recipe's evaluation."""
        return self.run.recipe.evaluation

    @property
    def trained(self) -> frozenset[str]:
        """Names of the parameters of the model that the stage trains."""
        return self.task.context.trained

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback, in order."""
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    def log(self, line: str) -> None:
        """Print a line about the stage."""
        self.run.cache.log(f"stage {self.stage.name}, step {self.step}: {line}")

    def close(self) -> None:
        """Tell the callbacks that no step comes any more."""
        self.call("close")

    def evaluate(self) -> None:
        """Score the weights that the stage would end with, then call `after_evaluation` of the callbacks."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.weights_to_evaluate())
            scores = self.run.score(self.task)
            if scores is not None:
                self.call("after_evaluation", scores)


class Callback:
    """Something that happens beside the steps of a stage. A new one overrides the hooks that it needs.

    Args:
        at: the stage.
        state: where the stage starts, or resumes.
    """

    def __init__(self, at: Progress, state: TrainState) -> None:
        self.at = at

    def before_stage(self) -> None:
        """Before the first step, or the first step after resuming."""

    def after_step(self) -> None:
        """After every step."""

    @contextmanager
    def weights_to_evaluate(self) -> Iterator[None]:
        """Inside, the model has the weights that are scored and kept."""
        yield

    def after_evaluation(self, scores: Scores) -> None:
        """After an evaluation, while the model has the weights that were scored."""

    def add_to_checkpoint(self, state: TrainState) -> None:
        """Add to a checkpoint what this callback needs to resume, as `state.callbacks[type(self).__name__]`."""

    def close(self) -> None:
        """After the last step, and after an error: let go of threads and files."""

    def restore_weights(self) -> None:
        """After the last step: give the model the weights that the stage ends with."""

    def after_stage(self) -> None:
        """When the stage has ended and the model has its weights."""
