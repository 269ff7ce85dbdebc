"""The batches of a stage, as the loop asks for them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.data.batching import Plan
from mclip_kit.features.ahead import bring_ahead
from mclip_kit.progress import tqdm


class StageBatches(ABC):
    """The batches of a stage; making one fills the feature cache with what the stage reads.

    Attributes:
        plan: which rows share a batch, and in which order the batches come.
        steps: of the whole stage.
    """

    plan: Plan
    steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the rows."""
        return self.plan.per_epoch

    @property
    def decodes(self) -> bool:
        """Whether every batch decodes picture files, so that reader processes are worth their while."""
        return False

    def epoch(self, number: int, start: int = 0) -> Iterator[np.ndarray]:
        """The rows of each batch of an epoch, from one on.

        With a shuffle window, what the next window reads of object storage is brought while the current one trains.
        """
        if self.plan.window is None:
            batches = self.plan.epoch(number)
            return map(batches.__getitem__, range(start, len(batches)))
        return bring_ahead(self.plan.windows(number), start, self.files, tqdm.write)

    def files(self, rows: np.ndarray) -> list[Path]:
        """The copies of objects that the batches of some rows read."""
        return []

    @abstractmethod
    def batch(self, rows: np.ndarray) -> Any:
        """The batch of some rows, on the CPU. Random draws come from torch's default generator.

        In training it is called in reader processes, see `data.readers`: what it changes stays there.
        """

    def read(self, rows: np.ndarray) -> tuple[Any, Sequence[int]]:
        """The batch of some rows, and the pictures that could not be read, for `note`."""
        return self.batch(rows), ()

    def note(self, unreadable: Sequence[int]) -> None:  # noqa: B027 - most kinds read no pictures
        """Count and report pictures that could not be read, in the process that trains."""
