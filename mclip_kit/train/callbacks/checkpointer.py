"""Checkpoints: where a run resumes."""

from mclip_kit import layout
from mclip_kit.train import fsdp
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.checkpoint import TrainState


class Checkpointer(Callback):
    """Writes RUN/checkpoints/last.pt every `checkpoint_every` steps, at an interruption and at the stage's end."""

    def after_step(self) -> None:
        """Save the stage if it is time; its end is saved by `after_stage`."""
        at = self.at
        if not at.done and (at.interrupted or at.step % at.run.recipe.checkpoint_every == 0):
            state = TrainState(at.index, at.step, module=at.module.own_state())
            state.optimizer = fsdp.full_optimizer_state(at.module, at.loop.optimizer)
            if at.run.accelerator.scaler is not None:
                state.scaler = at.run.accelerator.scaler.state_dict()
            at.call("add_to_checkpoint", state)
            self._save(state)

    def after_stage(self) -> None:
        """Save the start of the next stage."""
        self._save(TrainState(self.at.index + 1, 0))

    def _save(self, state: TrainState) -> None:
        run = self.at.run
        run.save(state, run.folder / layout.LAST)
        if run.is_main:
            run.metrics.send()
