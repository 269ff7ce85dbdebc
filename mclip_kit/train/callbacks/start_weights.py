"""What a task computes with the weights that its stage starts with, such as centroids, also after it is resumed."""

from mclip_kit import layout
from mclip_kit.errors import CheckpointError
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.checkpoint import TrainState


class StartWeights(Callback):
    """If the task asks for it: keeps the weights of the stage's start, and shows them to the task."""

    def before_stage(self) -> None:
        """Show the task the weights of the start; those of a resumed stage are back afterwards."""
        run, task = self.at.run, self.at.task
        if not task.needs_start:
            return
        if self.at.step == 0:
            run.save(TrainState(self.at.index, 0), run.folder / layout.START)
            task.see_start()
            return
        start = run.read(layout.START)
        if start.stage != self.at.index:
            raise CheckpointError(
                f"{run.folder / layout.START}: is the start of stage {start.stage + 1}, not of {self.at.stage.name}, "
                "which needs it; remove the run's folder and start again"
            )
        own = run.model.state_dict()
        now = {name: own[name].detach().to("cpu", copy=True) for name in start.model}
        run.load(start.model)
        task.see_start()
        run.load(now)
