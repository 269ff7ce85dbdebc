"""Plain words when a run goes wrong in a way that its loss may hide."""

from collections.abc import Iterator

SAME, LOST = 0.95, 0.05  # mean cosine of different rows from which on, and share of matches up to which, it is collapse
SPIKE = 20.0  # a gradient norm, as a multiple of the usual one
GRACE = 0.1  # share of a stage in which new towers may still be all alike


class CollapseMonitor:
    """Hears every step's values, and says each thing once a stage.

    Args:
        steps: of the stage.
    """

    def __init__(self, steps: int) -> None:
        self._from = max(20, int(GRACE * steps))
        self._usual: float | None = None
        self._said: set[str] = set()

    def check_step(self, step: int, values: dict[str, float]) -> Iterator[str]:
        """What is to be said about a step."""
        if step >= self._from and values.get("cosine", 0) > SAME and values.get("matching", 1) < LOST:
            yield from self._once(
                "collapse",
                f"all texts have nearly one embedding (mean cosine {values['cosine']:.2f}) and only "
                f"{values['matching']:.0%} find their own: it has collapsed; lower lr, warm up longer, or look whether "
                "both sides of the data belong together",
            )
        if values.get("skipped"):
            yield from self._once("skipped", "loss or gradient is no finite number; the step was skipped")
            return
        norm = values.get("grad_norm", 0.0)
        if self._usual is not None and step >= self._from and norm > SPIKE * self._usual > 0:
            yield from self._once(
                "spike", f"gradient norm {norm:.3g}, where {self._usual:.3g} is usual; set clip_norm if the loss jumps"
            )
        self._usual = norm if self._usual is None else 0.95 * self._usual + 0.05 * norm

    def _once(self, what: str, line: str) -> Iterator[str]:
        if what not in self._said:
            self._said.add(what)
            yield line
