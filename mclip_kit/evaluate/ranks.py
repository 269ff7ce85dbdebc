"""Exact ranks of right answers, and metrics of ranks. Arrays in, numbers out; NumPy alone.

Shapes: Q captions, G pictures, D embedding; where both directions are meant, N and M rows of two sides. R, C: rows and
columns of a block of scores.

Scores are exact. Embeddings are rounded to a grid whose step is 2^-26 of the longest embedding, finer than float32 for
most of their numbers, and stored as whole numbers in float64, where sums of products below 2^53 have no rounding. So
equal embeddings have equal scores, whatever the order of summation, and every machine finds the same ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from mclip_kit.errors import DataError

KS = (1, 5, 10)
Protocol = Literal["any", "xtd", "mclip", "language"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
ROWS, COLUMNS = 1024, 4096  # of a block of scores: 32 MB
BITS = 26.4  # log2 of the longest row on the grid: a product of two rows stays below 2^53, rounding included


def both_ranks(
    a_ND: np.ndarray, b_MD: np.ndarray, a_groups_N: np.ndarray, b_groups_M: np.ndarray, protocol: str = "any"
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row's best right answer among the rows of the other side, 1 is first; int64 (N,) and (M,).

    Every row of the same group is a right answer. A wrong row with an equal score comes before it, so constant
    embeddings score at most chance. A row with NaN or inf counts as a miss, and as a wrong answer it comes before all
    others. The rank of a row without a right answer is larger than the number of rows and than the largest k. Scores
    are computed in blocks: memory does not grow with N times M.

    Args:
        a_ND, b_MD: embeddings, all of about the same length, such as L2-normalised ones; whole numbers stay exact.
        a_groups_N, b_groups_M: rows with the same number are right answers of each other.
        protocol: `mclip` counts every wrong group once, the others every wrong row before the right one: the official
            mCLIP script removes duplicates of an image from the ranking before it counts to k. Five captions of one
            wrong image then cost one place, so its image-to-text recalls are higher than those of other protocols on
            the same embeddings (and that script calls text-to-image "i2t").
    Raises:
        DataError: a side is empty, the widths differ, or the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if not len(a_ND) or not len(b_MD):
        raise DataError(f"there is nothing to rank: {len(a_ND)} rows against {len(b_MD)}")
    if a_ND.shape[1] != b_MD.shape[1]:
        raise DataError(f"embeddings of width {a_ND.shape[1]} cannot be compared with those of width {b_MD.shape[1]}")
    a, b = _side(a_ND, a_groups_N), _side(b_MD, b_groups_M)
    best_N, best_M = _best(a, b)
    before_N, before_M = _wrong_before(a, b, best_N, best_M, whole_groups=protocol == "mclip")
    return a.ranks(before_N, best_N, len(b_MD)), b.ranks(before_M, best_M, len(a_ND))


def ranks(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    query_groups_Q: np.ndarray,
    gallery_groups_G: np.ndarray,
    protocol: str = "any",
) -> np.ndarray:
    """Rank of each query's best right answer, int64 (Q,): one direction of `both_ranks`."""
    return both_ranks(queries_QD, gallery_GD, query_groups_Q, gallery_groups_G, protocol)[0]


def recall(ranks_Q: np.ndarray) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent; NaN if there are no queries."""
    return {f"r{k}": float((ranks_Q <= k).mean() * 100) if len(ranks_Q) else float("nan") for k in KS}


def median_rank(ranks_Q: np.ndarray) -> float:
    """The median rank; NaN if there are no queries."""
    return float(np.median(ranks_Q)) if len(ranks_Q) else float("nan")


@dataclass(frozen=True)
class _Side:
    """One side of a ranking. `rows_ND` is in its first order, everything else in the order of the groups."""

    rows_ND: np.ndarray
    order_N: np.ndarray
    groups_N: np.ndarray
    finite_N: np.ndarray
    scale: float

    def whole_numbers(self, part: slice) -> np.ndarray:
        """Some rows on the grid, float64; zeros for rows that are non-finite."""
        rows_BD = self.rows_ND[self.order_N[part]].astype(np.float64)
        rows_BD[~self.finite_N[part]] = 0
        rows_BD *= self.scale
        return np.rint(rows_BD, out=rows_BD)

    def blocks(self, size: int, whole_groups: bool = False) -> list[slice]:
        """All rows, in blocks of about `size`; `whole_groups`: no group is split between blocks."""
        starts = np.arange(0, len(self.groups_N), size)
        if whole_groups:
            starts = np.unique(np.searchsorted(self.groups_N, self.groups_N[starts]))
        return [slice(start, stop) for start, stop in pairwise([*starts.tolist(), len(self.groups_N)])]

    def having(self, groups_B: np.ndarray) -> slice:
        """The rows from the first to the last of some groups, which are in order."""
        first, last = np.searchsorted(self.groups_N, groups_B[0]), np.searchsorted(self.groups_N, groups_B[-1], "right")
        return slice(int(first), int(last))

    def ranks(self, before_N: np.ndarray, best_N: np.ndarray, others: int) -> np.ndarray:
        """Ranks in the first order of the rows."""
        lost = max(others, *KS) + 1
        ranks_N = np.empty(len(before_N), np.int64)
        ranks_N[self.order_N] = np.where(np.isneginf(best_N), lost, before_N + 1)
        return ranks_N


def _side(rows_ND: np.ndarray, groups_N: np.ndarray) -> _Side:
    order_N = np.argsort(groups_N, kind="stable")
    squares_N = np.einsum("nd,nd->n", rows_ND, rows_ND, dtype=np.float64)
    finite_N = np.isfinite(squares_N)
    longest = float(np.sqrt(squares_N[finite_N].max(initial=0)))
    scale = 2.0 ** np.floor(BITS - np.log2(longest)) if longest else 1.0
    return _Side(rows_ND, order_N, groups_N[order_N], finite_N[order_N], scale)


def _best(a: _Side, b: _Side) -> tuple[np.ndarray, np.ndarray]:
    """Score of each row's nearest right answer, in the order of the groups; -inf where none is finite."""
    best_N, best_M = np.full(len(a.groups_N), -np.inf), np.full(len(b.groups_N), -np.inf)
    for rows in a.blocks(ROWS):
        near = b.having(a.groups_N[rows])
        for start in range(near.start, near.stop, COLUMNS):
            columns = slice(start, min(start + COLUMNS, near.stop))
            scores_RC = a.whole_numbers(rows) @ b.whole_numbers(columns).T
            right_RC = a.groups_N[rows, None] == b.groups_N[columns]
            right_RC &= a.finite_N[rows, None] & b.finite_N[columns]
            scores_RC[~right_RC] = -np.inf
            np.maximum(best_N[rows], scores_RC.max(1), out=best_N[rows])
            np.maximum(best_M[columns], scores_RC.max(0), out=best_M[columns])
    return best_N, best_M


def _wrong_before(
    a: _Side, b: _Side, best_N: np.ndarray, best_M: np.ndarray, whole_groups: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The number of wrong rows, or wrong groups, that are at least as near as each row's nearest right answer."""
    before_N, before_M = np.zeros(len(best_N), np.int64), np.zeros(len(best_M), np.int64)
    for rows, columns, scores_RC in _wrong_scores(a, b, whole_groups):
        per_row, per_column = scores_RC, scores_RC
        if whole_groups:
            per_row = np.maximum.reduceat(scores_RC, _starts(b.groups_N[columns]), axis=1)
            per_column = np.maximum.reduceat(scores_RC, _starts(a.groups_N[rows]), axis=0)
        before_N[rows] += np.count_nonzero(per_row >= best_N[rows, None], axis=1)
        before_M[columns] += np.count_nonzero(per_column >= best_M[columns], axis=0)
    return before_N, before_M


def _wrong_scores(a: _Side, b: _Side, whole_groups: bool) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of all scores; those of right pairs are -inf, those of non-finite rows are inf."""
    for columns in b.blocks(COLUMNS, whole_groups):
        columns_DC: Any = b.whole_numbers(columns).T
        for rows in a.blocks(ROWS, whole_groups):
            scores_RC = a.whole_numbers(rows) @ columns_DC
            scores_RC[~a.finite_N[rows]] = np.inf
            scores_RC[:, ~b.finite_N[columns]] = np.inf
            near = b.having(a.groups_N[rows])
            near = slice(max(near.start, columns.start), max(min(near.stop, columns.stop), columns.start))
            right_RC = a.groups_N[rows, None] == b.groups_N[near]
            scores_RC[:, near.start - columns.start : near.stop - columns.start][right_RC] = -np.inf
            yield rows, columns, scores_RC


def _starts(groups_N: np.ndarray) -> np.ndarray:
    """The first position of each group; the groups are in order."""
    return np.flatnonzero(np.r_[True, groups_N[1:] != groups_N[:-1]])
