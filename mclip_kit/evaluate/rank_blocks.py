"""Two sides of a ranking as whole numbers, and their scores in blocks; no torch.

Shapes: N and M rows of the two sides, D embedding; R and C rows of the two parts that a block of scores compares, B
rows of any part.

Embeddings are rounded to a grid whose step is 2^-26 of the longest embedding, finer than float32 for most of their
numbers, and stored as whole numbers in float64, where sums of products below 2^53 have no rounding. So equal embeddings
have equal scores, whatever the order of summation, and every machine finds the same ranks.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")

ROWS, COLUMNS = 512, 2048  # of a block of scores; of those measured, with D 512, the one with the fewest ns a pair
NEAR = 128  # rows whose right answers are looked for at once: they are near the diagonal, so larger blocks compute more
BITS = 26.4  # log2 of the longest row on the grid: a product of two rows stays below 2^53, rounding included
DENSE = 1 / 32  # the share of undecided pairs above which a whole block in float64 is faster than those pairs alone


@dataclass(frozen=True)
class Part:
    """Some rows of a side on the grid, in the order of the groups.

    Attributes:
        place: where they are in that order.
        exact_BD: whole numbers, float64; zeros for rows that are non-finite.
        groups_B, finite_B: their groups, and whether all their numbers are finite.
    """

    place: slice
    exact_BD: np.ndarray
    groups_B: np.ndarray
    finite_B: np.ndarray

    @cached_property
    def rounded_BD(self) -> np.ndarray:
        """The whole numbers rounded to float32."""
        return self.exact_BD.astype(np.float32)

    @cached_property
    def lengths_B(self) -> np.ndarray:
        """The Euclidean length of each row on the grid, float64."""
        return np.sqrt(np.einsum("bd,bd->b", self.exact_BD, self.exact_BD))


@dataclass(frozen=True)
class Side:
    """One side of a ranking. `rows_ND` is in its first order, everything else in the order of the groups."""

    rows_ND: np.ndarray
    order_N: np.ndarray
    groups_N: np.ndarray
    finite_N: np.ndarray
    scale: float

    def part(self, place: slice) -> Part:
        """Some rows, on the grid."""
        rows_BD = self.rows_ND[self.order_N[place]].astype(np.float64)
        rows_BD[~self.finite_N[place]] = 0
        rows_BD *= self.scale
        np.rint(rows_BD, out=rows_BD)
        return Part(place, rows_BD, self.groups_N[place], self.finite_N[place])

    def blocks(self, size: int, whole_groups: bool = False) -> list[slice]:
        """All rows, in blocks of about `size`; `whole_groups`: no group is split between blocks."""
        starts = np.arange(0, len(self.groups_N), size)
        if whole_groups:
            starts = np.unique(np.searchsorted(self.groups_N, self.groups_N[starts]))
        return [slice(start, stop) for start, stop in pairwise([*starts.tolist(), len(self.groups_N)])]

    def in_first_order(self, values_N: np.ndarray) -> np.ndarray:
        """A value for each row, from the order of the groups to the first order."""
        sorted_N = np.empty_like(values_N)
        sorted_N[self.order_N] = values_N
        return sorted_N


def side(rows_ND: np.ndarray, groups_N: np.ndarray) -> Side:
    """Sort one side by group and choose its grid."""
    order_N = np.argsort(groups_N, kind="stable")
    squares_N = np.einsum("nd,nd->n", rows_ND, rows_ND, dtype=np.float64)
    finite_N = np.isfinite(squares_N)
    longest = float(np.sqrt(squares_N[finite_N].max(initial=0)))
    scale = 2.0 ** np.floor(BITS - np.log2(longest)) if longest else 1.0
    return Side(rows_ND, order_N, groups_N[order_N], finite_N[order_N], scale)


def best_scores(a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Score of each row's nearest right answer, in the order of the groups; -inf where none is finite."""
    best_N, best_M = np.full(len(a.groups_N), -np.inf), np.full(len(b.groups_N), -np.inf)
    for rows in a.blocks(NEAR):
        near, part = having(b.groups_N, a.groups_N[rows]), a.part(rows)
        for start in range(near.start, near.stop, COLUMNS):
            columns = slice(start, min(start + COLUMNS, near.stop))
            other: Any = b.part(columns)
            scores_RC = part.exact_BD @ other.exact_BD.T
            right_RC = part.groups_B[:, None] == other.groups_B
            right_RC &= part.finite_B[:, None] & other.finite_B
            scores_RC[~right_RC] = -np.inf
            np.maximum(best_N[rows], scores_RC.max(1), out=best_N[rows])
            np.maximum(best_M[columns], scores_RC.max(0), out=best_M[columns])
    return best_N, best_M


def places(a: Side, b: Side, whole_groups: bool) -> tuple[list[slice], list[slice]]:
    """Rows and columns of all blocks of scores; `whole_groups`: no group is split between blocks."""
    return a.blocks(ROWS, whole_groups), b.blocks(COLUMNS, whole_groups)


def in_threads(work: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """Results of calls in as many threads as NumPy's products have, in their order; within, products have one thread.

    Few calls wait for others, so arguments are taken as they are needed.
    """
    libraries = ThreadpoolController()
    threads = max((library["num_threads"] for library in libraries.select(user_api="blas").info()), default=1)
    waiting: deque[Future[Result]] = deque()
    with libraries.limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for some in arguments:
            waiting.append(pool.submit(work, *some))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def wrong_scores(a: Part, b: Part, exact: bool) -> np.ndarray:
    """Scores of a block, (R, C): exact in float64, or float32. Right pairs have -inf, those of non-finite rows inf."""
    scores_RC: np.ndarray = a.exact_BD @ b.exact_BD.T if exact else a.rounded_BD @ b.rounded_BD.T
    scores_RC[~a.finite_B] = np.inf
    scores_RC[:, ~b.finite_B] = np.inf
    near = having(b.groups_B, a.groups_B)
    scores_RC[:, near][a.groups_B[:, None] == b.groups_B[near]] = -np.inf
    return scores_RC


def having(groups_N: np.ndarray, groups_B: np.ndarray) -> slice:
    """The rows from the first to the last of some groups; both are in order."""
    first, last = np.searchsorted(groups_N, groups_B[0]), np.searchsorted(groups_N, groups_B[-1], "right")
    return slice(int(first), int(last))
