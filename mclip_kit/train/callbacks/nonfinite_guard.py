"""Steps whose loss or gradient is non-finite: their rows are kept, and too many in a row end the run."""

import json

from mclip_kit import layout
from mclip_kit.disk import disk_errors
from mclip_kit.errors import DataError
from mclip_kit.models.finite import first_nonfinite
from mclip_kit.storage import send
from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.processes import on_main


class NonfiniteGuard(Callback):
    """Counts the consecutive steps that the loop skipped; `max_nonfinite` of them are an error."""

    def __init__(self, at: Progress, state: TrainState) -> None:
        super().__init__(at, state)
        self._consecutive = int(state.callbacks.get("NonfiniteGuard", {}).get("consecutive", 0))
        self._updated = state.step > 0  # whether the weights have changed in this stage

    def after_step(self) -> None:
        """Write the rows of a skipped step to RUN/nonfinite.jsonl."""
        if not self.at.values["skipped"]:
            self._consecutive, self._updated = 0, True
            return
        self._consecutive += 1
        run, step = self.at.run, self.at.step - 1
        row = {"stage": self.at.stage.name, "step": step, "rows": self.at.rows.tolist()}

        def add() -> None:
            path = run.folder / layout.NONFINITE
            with disk_errors(path), open(path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            send(path)

        on_main(add)
        if self._consecutive >= self.at.stage.max_nonfinite:
            count, values = self._consecutive, self.at.values
            raise DataError(
                f"{self.at.loop.name}: loss {values['loss']:.3g} or gradient norm {values['grad_norm']:.3g} was "
                f"non-finite (NaN or inf) in {count} step{'s' * (count > 1)} up to step {step}; {self._advice()}; "
                f"the rows are in {run.folder / layout.NONFINITE}"
            )

    def add_to_checkpoint(self, state: TrainState) -> None:
        """How many steps in a row were skipped."""
        state.callbacks["NonfiniteGuard"] = {"consecutive": self._consecutive}

    def _advice(self) -> str:
        """What can help: a learning rate cannot where a frozen weight is bad, or before the first update."""
        name = first_nonfinite(self.at.run.model)
        if name and name not in self.at.trained:
            tower = name.split(".")[0]
            source = self.at.run.model.sources.get(tower, "")
            return f"the weight {name} of {f'{tower} {source}'.strip()} is not finite: use other weights"
        if self._updated:
            return "lower lr, set clip_norm, or precision=fp32"
        return "no update came before, so lr is not the cause: look at these rows, or set precision=fp32"
