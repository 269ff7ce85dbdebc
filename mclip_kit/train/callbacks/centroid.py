"""Edges of `centroid`: its targets are those of the weights with which the stage starts, also after it is resumed."""

from typing import Any

from mclip_kit import layout
from mclip_kit.config.stages import TriangleStage
from mclip_kit.errors import CheckpointError
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.checkpoint import TrainState


class Centroid(Callback):
    """Gives the batches of a stage their centroids before its first step, and keeps the weights that made them."""

    def before_stage(self) -> None:
        """Compute the centroids, or find them in the cache."""
        at, run, task = self.at, self.at.run, self.at.task
        if not isinstance(at.stage, TriangleStage) or "centroid" not in at.stage.vertices:
            return
        if at.step == 0:
            run.save(TrainState(at.index, 0), run.folder / layout.START)
            _find(task)
            return
        start = run.read(layout.START)
        if start.stage != at.index:
            raise CheckpointError(
                f"{run.folder / layout.START}: is the start of stage {start.stage + 1}, not of {at.stage.name}, whose "
                "centroids it shall give; remove the run's folder and start again"
            )
        own = run.model.state_dict()
        now = {name: own[name].detach().to("cpu", copy=True) for name in start.model}
        run.load(start.model)
        _find(task)
        run.load(now)


def _find(task: Any) -> None:
    task.find_centroids()
