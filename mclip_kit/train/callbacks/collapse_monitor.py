"""A warning when a run goes wrong in a way that its loss may hide."""

from collections.abc import Iterator

from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.checkpoint import TrainState

SAME, LOST = 0.95, 0.05  # a collapse: mean cosine of different rows above the one, share of matches below the other
SPIKE = 20.0  # a gradient norm, as a multiple of the usual one
GRACE, FIRST = 0.1, 50  # share of a stage, and steps after the warm-up, in which new towers may still give all texts
# the same embedding


class Warnings:
    """Reads the values of every step, and warns of each thing once.

    Args:
        steps: of the stage.
        warmup: those of them in which the learning rate rises.
    """

    def __init__(self, steps: int, warmup: int = 0) -> None:
        self._first = max(warmup + FIRST, int(GRACE * steps))
        self._usual: float | None = None
        self._known: set[str] = set()

    def check_step(self, step: int, values: dict[str, float]) -> Iterator[str]:
        """Warnings about a step."""
        collapsed = values.get("cosine", 0) > SAME and values.get("matching", 1) < LOST
        if "collapse" in self._known and not collapsed and values.get("matching", 0) > 2 * LOST:
            yield from self._once("apart", f"the embeddings are apart again: {values['matching']:.0%} match their own")
        if step >= self._first and collapsed:
            yield from self._once(
                "collapse",
                f"the embeddings have collapsed: all texts have nearly the same one (mean cosine "
                f"{values['cosine']:.2f}), and only {values['matching']:.0%} match their own; lower lr, use a longer "
                "warm-up, or check that both sides of the data belong together",
            )
        if values.get("skipped"):
            yield from self._once("skipped", "loss or gradient is non-finite (NaN or inf); the step was skipped")
            return
        norm = values.get("grad_norm", 0.0)
        if self._usual is not None and step >= self._first and norm > SPIKE * self._usual > 0:
            yield from self._once(
                "spike", f"gradient norm {norm:.3g}, usually {self._usual:.3g}; set clip_norm if the loss jumps"
            )
        self._usual = norm if self._usual is None else 0.95 * self._usual + 0.05 * norm

    def _once(self, what: str, line: str) -> Iterator[str]:
        if what not in self._known:
            self._known.add(what)
            yield line


class CollapseMonitor(Callback):
    """Prints the warnings of a stage."""

    def __init__(self, at: Progress, state: TrainState) -> None:
        super().__init__(at, state)
        self._warnings = Warnings(at.loop.steps, at.stage.warmup_steps)

    def after_step(self) -> None:
        """Check the step."""
        for line in self._warnings.check_step(self.at.step, self.at.values):
            self.at.log(line)
