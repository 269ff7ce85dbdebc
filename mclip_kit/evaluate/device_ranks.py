"""The counts of `ranks` on a device of torch, such as a GPU: the same products, limits and exact scores, larger blocks.

Shapes: N and M rows of the two sides, D embedding; R and C rows and columns of a block of scores; P: pairs of rows.

The bound of the rounding holds for sums in any order, so for any device whose products are of float32 itself, not of a
shorter type such as TF32. In float64 they are of whole numbers, and exact.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mclip_kit.evaluate.rank_blocks import DENSE, Part, Side, having
from mclip_kit.progress import SOON, tqdm

ROWS, COLUMNS = 2**11, 2**16  # of a block of scores, which takes half a gigabyte
PAIRS = 2**15  # undecided pairs that are computed at once
Limits = Callable[[np.ndarray, Part, Part], tuple[np.ndarray, np.ndarray]]
"""Best right scores and two parts -> float32 scores: one of a pair tells its place at or below the first, or above the
second."""


def rows_before(
    a: Side, b: Side, best_N: np.ndarray, best_M: np.ndarray, limits: Limits, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """The number of wrong rows that are at least as near as each row's nearest right answer, int64 (N,) and (M,)."""
    before_N, before_M = np.zeros(len(best_N), np.int64), np.zeros(len(best_M), np.int64)
    strips, blocks = b.blocks(COLUMNS), a.blocks(ROWS)
    with (
        tqdm(total=len(strips) * len(blocks), desc="compare", unit="block", leave=False, delay=SOON) as bar,
        _whole_float32(),
        torch.no_grad(),
    ):
        for columns in strips:
            part_C = b.part(columns)
            other = _Block(part_C, best_M[columns], device)
            for rows in blocks:
                part_R = a.part(rows)
                block = _Block(part_R, best_N[rows], device)
                block.limit(*limits(best_N[rows], part_R, part_C))
                other.limit(*limits(best_M[columns], part_C, part_R))
                per_row, per_column = _count(block, other)
                before_N[rows] += per_row
                before_M[columns] += per_column
                bar.update()
    return before_N, before_M


class _Block:
    """Some rows of a side on a device."""

    def __init__(self, part: Part, best_B: np.ndarray, device: str) -> None:
        self.part, self.device = part, device
        self.exact_BD = torch.from_numpy(part.exact_BD).to(device)
        self.rounded_BD = self.exact_BD.float()
        self.wrong_B = torch.from_numpy(~part.finite_B).to(device)
        self.groups_B = torch.from_numpy(part.groups_B).to(device)
        self.best_B = torch.from_numpy(best_B).to(device)

    def limit(self, low_B: np.ndarray, high_B: np.ndarray) -> None:
        """Set the scores between which a float32 score does not tell."""
        self.low_B, self.high_B = (torch.from_numpy(limit_B).to(self.device) for limit_B in (low_B, high_B))


def _count(a: _Block, b: _Block) -> tuple[np.ndarray, np.ndarray]:
    """The wrong rows of a block before each of its rows and columns."""
    scores_RC = _wrong_scores(a, b, a.rounded_BD @ b.rounded_BD.T)
    row_RC, column_RC = scores_RC > a.high_B[:, None], scores_RC > b.high_B
    open_RC = ((scores_RC > a.low_B[:, None]) ^ row_RC) | ((scores_RC > b.low_B) ^ column_RC)
    if int(open_RC.count_nonzero()) > DENSE * open_RC.numel():
        scores_RC = _wrong_scores(a, b, a.exact_BD @ b.exact_BD.T)
        row_RC, column_RC, open_RC = scores_RC >= a.best_B[:, None], scores_RC >= b.best_B, open_RC[:0]
    per_row, per_column = row_RC.sum(1), column_RC.sum(0)
    for rows_P, columns_P in _pairs(open_RC):
        scores_P = (a.exact_BD[rows_P] * b.exact_BD[columns_P]).sum(1)
        per_row += _added(scores_P >= a.best_B[rows_P], row_RC[rows_P, columns_P], rows_P, len(per_row))
        per_column += _added(scores_P >= b.best_B[columns_P], column_RC[rows_P, columns_P], columns_P, len(per_column))
    return per_row.cpu().numpy(), per_column.cpu().numpy()


def _wrong_scores(a: _Block, b: _Block, scores_RC: Tensor) -> Tensor:
    """Scores as they are, but -inf of right pairs, and inf of non-finite rows."""
    scores_RC[a.wrong_B] = torch.inf
    scores_RC[:, b.wrong_B] = torch.inf
    near = having(b.part.groups_B, a.part.groups_B)
    scores_RC[:, near].masked_fill_(a.groups_B[:, None] == b.groups_B[near], -torch.inf)
    return scores_RC


def _pairs(open_RC: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the undecided pairs, some at a time."""
    for pairs_P2 in open_RC.nonzero().split(PAIRS):
        yield pairs_P2[:, 0], pairs_P2[:, 1]


def _added(before_P: Tensor, counted_P: Tensor, places_P: Tensor, size: int) -> Tensor:
    """How many pairs more, or fewer, are before each row when the exact scores decide."""
    return torch.zeros(size, dtype=torch.int64, device=places_P.device).index_add_(
        0, places_P, before_P.long() - counted_P.long()
    )


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products of float32 in the block are of float32, even where a program allows TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
