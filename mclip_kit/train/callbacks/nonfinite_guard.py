"""Steps whose loss or gradient is non-finite: their rows are kept, and too many in a row end the run."""

import json

from mclip_kit import layout
from mclip_kit.errors import DataError
from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.processes import on_main


class NonfiniteGuard(Callback):
    """Counts the consecutive steps that the loop skipped; `max_nonfinite` of them are an error."""

    def __init__(self, at: Progress, state: TrainState) -> None:
        super().__init__(at, state)
        self._consecutive = 0

    def after_step(self) -> None:
        """Write the rows of a skipped step to RUN/nonfinite.jsonl."""
        if not self.at.values["skipped"]:
            self._consecutive = 0
            return
        self._consecutive += 1
        run, step = self.at.run, self.at.step - 1
        row = {"stage": self.at.stage.name, "step": step, "rows": self.at.rows.tolist()}

        def add() -> None:
            with open(run.folder / layout.NONFINITE, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")

        on_main(add)
        if self._consecutive >= self.at.stage.max_nonfinite:
            count, values = self._consecutive, self.at.values
            raise DataError(
                f"{self.at.loop.name}: loss {values['loss']:.3g} or gradient norm {values['grad_norm']:.3g} was "
                f"non-finite (NaN or inf) in {count} step{'s' * (count > 1)} up to step {step}; lower lr, set "
                f"clip_norm, or precision=fp32; the rows are in {run.folder / layout.NONFINITE}"
            )
