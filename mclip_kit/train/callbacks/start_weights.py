"""The weights that a stage starts with: WiSE-FT reads them at its end, a task such as one of centroids at its start."""

from mclip_kit import layout
from mclip_kit.errors import CheckpointError
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.checkpoint import TrainState


class StartWeights(Callback):
    """Keeps the weights of the stage's start for WiSE-FT and for a task that asks for them, which it shows them to."""

    def before_stage(self) -> None:
        """Show the task the weights of the start; those of a resumed stage are back afterwards."""
        run, task = self.at.run, self.at.task
        if self.at.step == 0 and (task.needs_start or task.stage.wise_ft_alpha):
            run.save(TrainState(self.at.index, 0), run.folder / layout.START)
        if not task.needs_start:
            return
        if self.at.step == 0:
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
