"""Frozen means computed once: outputs of frozen towers, found by the content of their input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm


@dataclass
class Table:
    """Features of one tower: a row per distinct input."""

    rows: dict[str, int] = field(default_factory=dict)
    values: Tensor = field(default_factory=lambda: torch.zeros(0))


class Store:
    """Outputs of frozen towers, in memory, by tower and input content.

    A text is keyed by itself and a picture by the hash of its pixels, so an English caption shared by nine language
    pairs is encoded once. Whoever trains a tower calls `forget` for it.
    """

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def forget(self, tower: str) -> None:
        """Drop everything that a tower computed."""
        self._tables.pop(tower, None)

    def get(
        self,
        tower: str,
        keys: Sequence[str],
        compute: Callable[[list[int]], Tensor],
        sizes: Sequence[int] | np.ndarray | None = None,
        batch_size: int = 256,
    ) -> tuple[Tensor, Tensor]:
        """The features of some inputs; what is missing is computed first.

        Args:
            tower: whose outputs these are.
            keys: the content of each input, or its hash.
            compute: positions in `keys` -> features (len, D).
            sizes: tokens of each input; inputs of similar size are computed together.
            batch_size: inputs a call of `compute`.
        Returns:
            All values of the tower (M, D) on the CPU, and the row of each key in them, int64 (len(keys),).
        """
        table = self._tables.setdefault(tower, Table())
        missing = {key: position for position, key in enumerate(keys) if key not in table.rows}
        todo = list(missing.values())
        if sizes is not None:
            todo.sort(key=lambda position: int(sizes[position]))
        parts = [table.values] if len(table.values) else []
        with (
            tqdm(
                total=len(todo),
                desc=f"{tower} features",
                unit="row",
                leave=False,
                dynamic_ncols=True,
                disable=len(todo) < batch_size,
            ) as bar,
            torch.no_grad(),
        ):
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                parts.append(compute(batch).float().cpu())
                bar.update(len(batch))
        if todo:
            table.rows.update({keys[position]: len(table.rows) + i for i, position in enumerate(todo)})
            table.values = torch.cat(parts)
        return table.values, torch.tensor([table.rows[key] for key in keys], dtype=torch.int64)
